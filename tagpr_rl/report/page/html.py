"""Renders one self-contained HTML page of a run. Every text of a model or a data set is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.files import write_json, write_text
from tagpr_rl.report.cards.prmu_page import prmu_evals, prmu_view
from tagpr_rl.report.cards.sections import chains_view, faithful_tests, prompt_table, untaught_tags
from tagpr_rl.report.cards.sweep_page import sweeps_near
from tagpr_rl.report.charts.curves import chains_of, curve_groups
from tagpr_rl.report.charts.plots import short
from tagpr_rl.report.charts.tag_curves import tag_curves
from tagpr_rl.report.page.collect import collect, reward_terms
from tagpr_rl.report.page.embed import environment, json_for_page, script, script_source
from tagpr_rl.report.page.headline import ancestry, definitions, formula, headline_cards, held_out
from tagpr_rl.report.page.names import PARSE_STATUS, STAGE_KINDS, TAG_PARTS, metric_name, reward_names
from tagpr_rl.report.page.read import Reader, Row, read_rows
from tagpr_rl.report.page.samples import CHANGED, REASONS
from tagpr_rl.report.page.trace import tag_hues, trace_view
from tagpr_rl.report.page.traces import viewer_data
from tagpr_rl.report.page.views import forests, score_rows, seconds_text
from tagpr_rl.run.layout import RunDir
from tagpr_rl.tags.schema import TagSchema, schema_from

SECTIONS = (
    ("headline", "What was learned"),
    ("alerts", "Alerts"),
    ("names", "Names"),
    ("results", "Results"),
    ("limits", "Not measured"),
    ("ablations", "Ablations"),
    ("pipeline", "Pipeline"),
    ("chains", "Chains"),
    ("rewards", "Rewards"),
    ("training", "Training curves"),
    ("tags", "Tags"),
    ("prmu_eval", "Reward model"),
    ("faithful", "Faithfulness"),
    ("samples", "Samples"),
    ("traces", "Traces"),
)


SAMPLES_OPEN = 2
"""Samples of each reason of CHANGED that are open from the start."""


def build_report(run: RunDir, recipe: Recipe) -> Path:
    """Write report.json and report.html of a run, complete or not; returns the page's path.

    Each file is replaced atomically, and the same files give the same bytes. Raises TagprError for a broken
    file.
    """
    report = collect(run, recipe)
    page = render_page(run, recipe, report)
    write_json(run.report_json, report)
    write_text(run.report_html, page)
    return run.report_html


def render_page(run: RunDir, recipe: Recipe, report: Row) -> str:
    """The page as text. `report` is `collect`'s; curves and rollouts are read from the run's folder."""
    schema = schema_from(recipe.schema_file)
    data = viewer_data(run, recipe, schema)
    source = script()
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            **sections_of(run, recipe, report, schema),
            curves=curves_section(run, recipe, report, data),
            shown=data["shown"],
            traces=json_for_page(data) if data["traces"] else None,
            script=source,
            script_source=script_source(source),
        )
    )


def curves_section(run: RunDir, recipe: Recipe, report: Row, traces: Row, read: Reader = read_rows) -> Markup:
    """The part of the page with the curves of training, which grows with every step. `traces`: `viewer_data`'s."""
    text = (
        environment()
        .get_template("curves.html.j2")
        .render(
            curves=curve_groups(run, recipe, read),
            tag_curves=tag_curves(chains_of(run, recipe, read), traces),
            untaught=untaught_tags(report, schema_from(recipe.schema_file)),
        )
    )
    return Markup(text)


def sections_of(run: RunDir, recipe: Recipe, report: Row, schema: TagSchema) -> dict[str, Any]:
    """What the page's other parts are made from, as values of its template."""
    sweeps = sweeps_near(run)
    faithful = faithful_tests(run)
    return {
        "r": report,
        "tasks": report["tasks"],
        "device": recipe.platform.device,
        "sections": _sections(report, sweeps, faithful),
        "cards": headline_cards(report),
        "seconds": _all_seconds(report),
        "held_out": held_out(report)[0],
        "ancestry": ancestry(recipe, report["headline"]["final"]) if report["headline"]["final"] else [],
        "definitions": definitions(report, recipe),
        "score_rows": score_rows(report),
        "cut_off": any(entry["truncated"] is not None for entry in report["models"].values()),
        "forests": forests(report),
        "controls": _controls(report),
        "official": _official(report),
        "parse_table": _parse_table(report),
        "stages": _stages(report),
        "formulas": [(name, formula(s.terms)) for name, s in recipe.stages.items() if isinstance(s, GrpoStage)],
        "tag_parts": TAG_PARTS,
        "components": reward_names(reward_terms(recipe)),
        "sweeps": sweeps,
        "faithful": faithful,
        "alerts": _alerts(report),
        "prmu_evals": prmu_evals(run),
        "prompt_table": prompt_table(report["prompts"] or {}),
        "chains": chains_view(report),
        "prmu": prmu_view(report["prmu"]),
        "schema": schema,
        "hues": tag_hues(schema),
        "tag_index": {name: index for index, name in enumerate(schema.names)},
        "samples": _samples(report, schema),
        "reasons": REASONS,
    }


def _sections(report: Row, sweeps: Sequence[Any], faithful: Sequence[Any]) -> list[tuple[str, str]]:
    """The sections that the page has."""
    absent = {
        "headline": report["headline"]["final"] is None,
        "alerts": not report["alerts"],
        "ablations": not sweeps,
        "faithful": not faithful,
    }
    return [(key, title) for key, title in SECTIONS if not absent.get(key)]


def _alerts(report: Row) -> list[dict[str, Any]]:
    """Alerts with their numbers written out."""
    return [
        {**alert, **{key: "-" if alert[key] is None else short(alert[key]) for key in ("value", "limit")}}
        for alert in report["alerts"]
    ]


def _all_seconds(report: Row) -> str:
    """The time of the finished stages, in words; "" if none has finished."""
    seconds = [stage["seconds"] for stage in report["stages"] if stage["seconds"] is not None]
    return f"{seconds_text(sum(seconds))} in {len(seconds)} finished stages" if seconds else ""


def _controls(report: Row) -> list[dict[str, Any]]:
    """Controls with the difference to the own profile on the questions that both answered."""
    return [{**entry, "name": name} for name, entry in report["controls"].items()]


def _official(report: Row) -> list[dict[str, Any]]:
    """A table for each task: models, controls and baselines as rows, the task's metrics as columns."""
    entries = {**report["models"], **report["controls"], **report["baselines"]}
    values = {name: {(m["task"], m["name"]): m for m in entry["metrics"]} for name, entry in entries.items()}
    names: dict[str, dict[str, None]] = {}
    for task, metric in (key for table in values.values() for key in table):
        names.setdefault(task, {})[metric] = None
    return [
        {
            "task": task,
            "metrics": [metric_name(metric) for metric in metrics],
            "rows": [(name, [table.get((task, metric)) for metric in metrics]) for name, table in values.items()],
        }
        for task, metrics in names.items()
    ]


def _parse_table(report: Row) -> dict[str, Any] | None:
    columns = {name: e["parse_counts"] for name, e in {**report["models"], **report["controls"]}.items()}
    seen = {status for counts in columns.values() for status, n in counts.items() if n}
    if not seen:
        return None
    order = [*[s for s in PARSE_STATUS if s in seen], *sorted(seen - set(PARSE_STATUS))]
    rows = [
        {"status": s, "meaning": PARSE_STATUS.get(s, ""), "counts": [counts.get(s, 0) for counts in columns.values()]}
        for s in order
    ]
    return {"names": list(columns), "rows": rows}


def _stages(report: Row) -> list[dict[str, Any]]:
    longest = max((s["seconds"] or 0.0 for s in report["stages"]), default=0.0)
    return [
        {
            **stage,
            "meaning": STAGE_KINDS.get(stage["kind"], ""),
            "time": seconds_text(stage["seconds"]),
            "share": round(100 * stage["seconds"] / longest, 1) if stage["seconds"] and longest else 0,
            "metrics": [(metric_name(k).label, short(v)) for k, v in stage["metrics"].items() if v is not None][:8],
        }
        for stage in report["stages"]
    ]


def _samples(report: Row, schema: TagSchema) -> list[dict[str, Any]]:
    """Samples with each response cut into pieces by the one parser; those open from the start are marked."""
    count: Counter[str] = Counter()
    rows = []
    for sample in report["samples"]:
        count[sample["reason"]] += 1
        responses = [
            {
                **entry,
                "model": model,
                "direct": model in report["direct_models"],
                "view": trace_view(entry["response"], schema),
            }
            for model, entry in sample["responses"].items()
        ]
        opened = sample["reason"] in CHANGED and count[sample["reason"]] <= SAMPLES_OPEN
        rows.append({**sample, "responses": responses, "open": opened})
    return rows
