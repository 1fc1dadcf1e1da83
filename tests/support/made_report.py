"""A small made-up run with everything a report shows, for tests: its numbers are chosen, nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from made_runs import RAW

from tagpr_rl.config import Recipe, recipe_from_dict
from tagpr_rl.files import write_json
from tagpr_rl.run.layout import RunDir, StageDir

EVIL = "<script>alert(1)</script>"
GOOD = (
    "<think> <examine_examples> the user gave 4 for strong </examine_examples> <infer_preference> the user prefers "
    "bold things </infer_preference> <apply_preference> so strong gets 4 </apply_preference> </think> 4"
)
STAGES: dict[str, Any] = {
    **RAW["stages"],
    "guided": {**RAW["stages"]["guided"], "weights": {"gate": False}},  # as in a run of an earlier release
    "explore": {"kind": "grpo", "init": "guided", "weights": {"alpha": 0, "beta": 0, "gate": False}},
    "eval": {"kind": "evaluate", "models": ["base", "sft", "explore"]},
}


def make_recipe() -> Recipe:
    raw = {"name": "tiny", "data": {"tasks": ["LaMP_2", "LaMP_3"]}, "stages": STAGES}
    return recipe_from_dict(raw, source="test")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def entry(two: float, three: float, **more: Any) -> dict[str, Any]:
    """EvalResult.as_dict of a model with these task scores, two questions a task, each by its own user."""
    questions = [
        {
            "key": f"{t}/{i}",
            "id": str(i),
            "task": t,
            "user_id": f"u{i}",
            "answer": "",
            "score": s,
            "parse_status": "OK",
            "unparsable": False,
        }
        for t, s in (("LaMP_2", two), ("LaMP_3", three))
        for i in range(2)
    ]
    mean = (two + three) / 2
    return {
        "metrics": [
            {
                "task": "LaMP_3",
                "name": "MAE",
                "value": 0.777,
                "n": 2,
                "n_unparsable": 0,
                "higher_is_better": False,
                "low": 0.5,
                "high": 0.9,
            }
        ],
        "task_scores": {"LaMP_2": two, "LaMP_3": three},
        "score": mean,
        "score_low": mean - 0.05,
        "score_high": mean + 0.05,
        "strict_score": mean,
        "user_macro_score": mean,
        "strict_rate": 0.75,
        "parse_counts": {"OK": 3, "TRUNCATED": 1},
        "n": 4,
        "n_users": 2,
        "n_unparsable": 0,
        "questions": questions,
    } | more


def response(record: str, task: str, score: float, text: str, status: str = "OK") -> dict[str, Any]:
    return {
        "record_id": record,
        "task": task,
        "user_id": "u" + record,
        "prompt": f"prompt of {record} {EVIL}",
        "response": text,
        "answer": "4",
        "gold": f"gold-{record}",
        "score": score,
        "parse_status": status,
    }


def rollout(step: int, sample: int, text: str, total: float, advantage: float) -> dict[str, Any]:
    return {
        "step": step,
        "record_id": "7",
        "task": "LaMP_3",
        "user_id": "u7",
        "sample": sample,
        "prompt": "p",
        "gold": "4",
        "response": text,
        "advantage": advantage,
        "reward_total": total,
        "reward_task": 1.0,
        "reward_format": 1.0,
        "reward_tag": 1.0,
        "reward_prmu": 0.625,
        "reward_repetition": 0.0,
        "reward_prmu_status": "scored",
    }


def make_run(root: Path, *, evaluated: bool = True) -> RunDir:
    """A run of `make_recipe`: guided is done, explore unfinished, sft and prmu are not run."""
    run = RunDir(root / "tiny")
    folders = {name: run.stage(i, name) for i, name in enumerate(STAGES)}
    counts = {task: {"train": 31, "held_out": 17} for task in ("LaMP_2", "LaMP_3")}
    bounds = {
        "blind": {"LaMP_2": 0.333, "LaMP_3": 0.444, "mean": 0.3885},
        "oracle": {"LaMP_2": 0.991, "LaMP_3": 0.993, "mean": 0.992},
    }
    write_json(
        folders["data"].root / "data.json",
        {"source": "world", "n_questions": 96, "by_task": counts, "prompts": {}, "bounds": bounds},
    )
    rejected = {"kept": 29, "rejected": {"wrong_answer": 2}}
    write_json(
        folders["chains"].root / "chains.json",
        {**rejected, "tags": {}, "steps_per_chain": {"4": 29}, "pairs": {}, "kappa": None},
    )
    make_training(folders)
    if evaluated:
        make_evaluation(folders["eval"])
    seconds = {"data": 1.5, "model": 2.5, "base": 80.0, "chains": 0.5, "guided": 60.0}
    for name, time in (seconds | ({"eval": 9.0} if evaluated else {})).items():
        manifest = {
            "stage": name,
            "kind": STAGES[name]["kind"],
            "started": "2026-01-01T00:00:00+00:00",
            "seconds": time,
            "inputs": {},
            "config_sha256": "",
            "outputs": {},
            "metrics": {"parameters": 176000.0} if name == "model" else {},
            "notes": [f"note of {name}"],
        }
        write_json(folders[name].manifest, manifest)
    return run


def make_training(folders: dict[str, StageDir]) -> None:
    """Metrics of base, guided and explore, and guided's rollouts of three steps."""
    jsonl(folders["base"].metrics, [{"step": i, "train/loss": 4.0 / i} for i in range(1, 11)])
    guided = {"reward/prmu/mean": 0.6, "task/LaMP_2/mean": 0.5, "actor/pg_loss": float("nan")}
    steps = [{**guided, "step": s, "reward/total/mean": 1.0 + s / 100, "response_length/mean": 40 + s} for s in (1, 2)]
    steps[1]["reward/prmu/mean"] = 0.65
    jsonl(folders["guided"].metrics, steps)
    jsonl(
        folders["explore"].metrics,
        [{"step": s, "reward/total/mean": 0.9, "reward/prmu/mean": 0.0} for s in (1, 2)],
    )
    for step in (1, 2, 3):
        rows = [rollout(step, 0, f"step{step} {EVIL}", 0.125, -0.71), rollout(step, 1, GOOD, 1.325, 0.71)]
        jsonl(folders["guided"].rollouts / f"step_{step:04d}.jsonl", rows)


def make_evaluation(folder: StageDir) -> None:
    """eval.json and the responses of three models to three questions."""
    models = {"base": entry(0.41, 0.43), "sft": entry(0.61, 0.63), "explore": entry(0.811, 0.833)}
    write_json(
        folder.root / "eval.json",
        {
            "models": models,
            "controls": {"shuffled": entry(0.31, 0.33)},
            "baselines": {"majority": entry(0.2, 0.6)},
            "comparisons": [{"a": "base", "b": "explore", "difference": 0.402, "low": 0.35, "high": 0.45}],
        },
    )
    for model, scores in (("base", (0, 1, 0)), ("sft", (1, 1, 0)), ("explore", (1, 0, 0))):
        rows = [response(str(i), "LaMP_2" if i < 2 else "LaMP_3", s, GOOD) for i, s in enumerate(scores)]
        rows[2] |= {"response": f"no thought {EVIL}", "parse_status": "NO_THOUGHT"}
        jsonl(folder.root / "responses" / f"{model}.jsonl", rows)
