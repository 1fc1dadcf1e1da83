"""Collects the results of a run's stages for report.json. Missing values are listed and never invented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tagpr_rl.config import EvaluateStage, GrpoStage, Recipe, prompt_style
from tagpr_rl.eval.metrics import task_mean
from tagpr_rl.report.page.headline import difference, gains, rank, roles
from tagpr_rl.report.page.names import STAGE_KINDS
from tagpr_rl.report.page.read import Row, finite, number, read_object, read_rows
from tagpr_rl.report.page.samples import choose_samples
from tagpr_rl.reward.components import Term
from tagpr_rl.run.layout import RunDir, StageDir

FORMAT = 1
"""Version of report.json's layout."""
DONE, UNFINISHED, NOT_RUN = "done", "unfinished", "not run"


def collect(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """The content of report.json for a run, complete or not.

    A stage without a manifest is "unfinished" (its folder exists) or "not run". Values that no stage wrote
    are null or absent and listed under "not_measured". Raises TagprError for a broken file.
    """
    stages = {name: directory for name, _, directory in stage_dirs(run, recipe)}
    kinds = {name: stage.kind for name, stage in recipe.stages.items()}

    def side_file(kind: str, file: str) -> Row | None:
        contents = (read_object(stages[name].root / file) for name, k in kinds.items() if k == kind)
        return next((content for content in contents if content is not None), None)

    data = side_file("data", "data.json") or {}
    evaluation = _evaluation(run, recipe)
    report: dict[str, Any] = {
        "format": FORMAT,
        "name": recipe.name,
        "tasks": list(recipe.data.tasks),
        "questions": {"total": data.get("n_questions"), "by_task": data.get("by_task") or {}},
        "data": {key: data.get(key) for key in ("source", "setting", "users", "empty_profiles", "n_used")},
        "prompts": side_file("prompts", "prompts.json"),
        "bounds": data.get("bounds"),
        **evaluation,
        "stages": [_stage(name, kinds[name], directory) for name, directory in stages.items()],
        "prmu": side_file("prmu", "prmu.json"),
        "chains": side_file("chains", "chains.json"),
        "alerts": [alert for name, directory in stages.items() for alert in _alerts(name, directory)],
        "environment": read_object(run.environment),
    }
    report["not_measured"] = not_measured(report, recipe)
    if not any((run.root / "faithful").glob("*.json")):
        report["not_measured"].append(
            "Whether a thought is faithful to the user's data is not measured; `tagpr study faithful` measures it. The "
            "page shows whether a thought is well formed and what PRMU says of it."
        )
    return dict(finite(report))


def stage_dirs(run: RunDir, recipe: Recipe) -> Iterator[tuple[str, str, StageDir]]:
    """(name, kind, folder) of each stage, in the recipe's order."""
    for index, (name, stage) in enumerate(recipe.stages.items()):
        yield name, stage.kind, run.stage(index, name)


def reward_terms(recipe: Recipe) -> list[Term]:
    """The terms of the rewards of all GRPO stages; each name once, with the weight of the first stage that has it."""
    terms: dict[str, Term] = {}
    for stage in recipe.stages.values():
        for term in stage.terms if isinstance(stage, GrpoStage) else ():
            terms.setdefault(term.name, term)
    return list(terms.values())


def _alerts(name: str, directory: StageDir) -> list[Row]:
    """The alerts of one stage in the order of their time."""
    return [
        {
            "stage": name,
            "step": int(step) if (step := number(row.get("step"))) is not None else None,
            "kind": str(row.get("kind", "")),
            "value": number(row.get("value")),
            "limit": number(row.get("limit")),
            "text": str(row.get("text", "")),
        }
        for row in read_rows(directory.root / "alerts.jsonl")
    ]


def _stage(name: str, kind: str, directory: StageDir) -> dict[str, Any]:
    manifest = read_object(directory.manifest)
    if manifest is None:
        begun = directory.root.is_dir() and any(directory.root.iterdir())
        return {
            "name": name,
            "kind": kind,
            "status": UNFINISHED if begun else NOT_RUN,
            "seconds": None,
            "metrics": {},
            "notes": [],
        }
    return {
        "name": name,
        "kind": kind,
        "status": DONE,
        "seconds": number(manifest.get("seconds")),
        "metrics": {key: number(value) for key, value in (manifest.get("metrics") or {}).items()},
        "notes": [str(note) for note in manifest.get("notes") or ()],
    }


def _evaluation(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """The results of the evaluate stages. A later stage's entry replaces an earlier one of the same name."""
    merged: dict[str, Any] = {"models": {}, "other_prompts": {}, "controls": {}, "control_model": None}
    merged |= {"baselines": {}, "comparisons": []}
    styles = {name: prompt_style(recipe, name) for name in recipe.stages}
    raw: dict[str, Row] = {}
    responses: dict[str, list[Row]] = {}
    for name, _, directory in stage_dirs(run, recipe):
        stage = recipe.stages[name]
        if not isinstance(stage, EvaluateStage):
            continue
        content = read_object(directory.root / "eval.json")
        if content is None:
            continue
        for part in ("models", "other_prompts", "controls", "baselines"):
            merged[part] |= {key: model_entry(value) for key, value in (content.get(part) or {}).items()}
        raw |= content.get("models") or {}
        styles |= asked_styles(content)
        merged["comparisons"] += [{**entry, "stage": name} for entry in content.get("comparisons") or []]
        if content.get("controls"):
            own = merged["control_model"] = content.get("control_model", stage.models[-1])
            for key, control in content["controls"].items():
                merged["controls"][key]["lost"] = difference(raw[own], control) if own in raw else None
        for model in stage.models:
            rows = read_rows(directory.root / "responses" / f"{model}.jsonl")
            if rows:
                responses[model] = rows
    merged["direct_models"] = [name for name, style in styles.items() if style != "reasoning"]
    who = roles(recipe, merged["models"])
    merged["headline"] = {**who, "rank": rank(recipe, who["final"]), "gains": gains(who, raw)}
    listed = {(entry["a"], entry["b"]) for entry in merged["comparisons"]}
    new = [gain for gain in merged["headline"]["gains"] if (gain["a"], gain["b"]) not in listed]
    merged["comparisons"] += [
        {key: gain[key] for key in ("a", "b", "difference", "low", "high")} | {"stage": None} for gain in new
    ]
    pair = (who["start"] or who["base"] or who["final"], who["final"])
    merged["samples"], merged["sample_counts"] = choose_samples(responses, pair)
    return merged


def asked_styles(content: Row) -> dict[str, str]:
    """Model, or `<model>-<prompt>` for its other prompts -> the prompt, as far as an eval.json had several."""
    choices = content.get("base_prompts") or {}
    chosen = {name: str(choice["chosen"]) for name, choice in choices.items()}
    return chosen | {label: label.rpartition("-")[2] for label in content.get("other_prompts") or {}}


def model_entry(raw: Row) -> dict[str, Any]:
    """One evaluated model, control or baseline, from `EvalResult.as_dict`; questions become intervals.

    "scores" and "intervals" (per task) are of the task score in [0, 1]; "mean" is over tasks. Values that the
    file lacks are null.
    """
    return {
        "scores": {task: number(value) for task, value in (raw.get("task_scores") or {}).items()},
        "intervals": _task_intervals(raw.get("questions") or []),
        "mean": number(raw.get("score")),
        "low": number(raw.get("score_low")),
        "high": number(raw.get("score_high")),
        "strict_mean": number(raw.get("strict_score")),
        "user_macro_mean": number(raw.get("user_macro_score")),
        "strict_rate": number(raw.get("strict_rate")),
        "truncated": number(raw.get("truncated")),
        "parse_counts": raw.get("parse_counts") or {},
        "n": raw.get("n"),
        "n_users": raw.get("n_users"),
        "n_unparsable": raw.get("n_unparsable"),
        "metrics": list(raw.get("metrics") or []),
    }


def _task_intervals(questions: list[Row]) -> dict[str, list[float]]:
    """Task -> [low, high], 95 % percentile bootstrap over users."""
    by_task: dict[str, list[Row]] = {}
    for question in questions:
        by_task.setdefault(str(question["task"]), []).append(question)
    intervals = {}
    for task, rows in by_task.items():
        _, low, high = task_mean([row["score"] for row in rows], [task] * len(rows), [row["user_id"] for row in rows])
        intervals[task] = [low, high]
    return intervals


def not_measured(report: dict[str, Any], recipe: Recipe) -> list[str]:
    """Sentences about what was not run or not measured."""
    out: list[str] = []
    for stage in report["stages"]:
        if stage["status"] != DONE:
            out.append(f"Stage '{stage['name']}' ({STAGE_KINDS[stage['kind']]}) is {stage['status']}.")
    for name, stage_config in recipe.stages.items():
        if isinstance(stage_config, EvaluateStage):
            models = [model for model in stage_config.models if model not in report["models"]]
            controls = [control for control in stage_config.controls if control not in report["controls"]]
            out += [f"Not evaluated: {', '.join(models)}."] if models else []
            out += [f"Controls not run: {', '.join(controls)}."] if controls else []
        if isinstance(stage_config, GrpoStage) and not stage_config.uses_prmu:
            out.append(f"Stage '{name}' uses no PRMU: its prmu component is 0 and carries no meaning.")
    if not any(isinstance(stage, EvaluateStage) for stage in recipe.stages.values()):
        out.append("The recipe has no evaluate stage: no held-out score is known.")
    if report["bounds"] is None:
        out.append("Blind and oracle ceilings are known for the embedded world only; none here.")
    if report["chains"] is not None and report["chains"].get("kappa") is None:
        out.append("Agreement of two labellers (Cohen's kappa) was not measured.")
    if report["models"] and not report["baselines"]:
        out.append("No baseline was evaluated.")
    out.append("Intervals are over users of one run with one seed; the spread between training seeds is not in them.")
    return out
