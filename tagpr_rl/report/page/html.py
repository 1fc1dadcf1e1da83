"""Renders one self-contained HTML page of a run. Every text of a model or a data set is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.files import write_json, write_text
from tagpr_rl.report.cards.prmu_page import prmu_evals
from tagpr_rl.report.cards.sections import chains_view, faithful_tests
from tagpr_rl.report.cards.sweep_page import sweeps_near
from tagpr_rl.report.charts.curves import chains_of, curve_groups
from tagpr_rl.report.charts.plots import short
from tagpr_rl.report.charts.tag_curves import tag_curves
from tagpr_rl.report.page.collect import collect, reward_terms
from tagpr_rl.report.page.embed import environment, json_for_page, script, script_source
from tagpr_rl.report.page.names import BOUNDS, CONTROLS, PARSE_STATUS, STAGE_KINDS, metric_name, reward_names
from tagpr_rl.report.page.read import Row
from tagpr_rl.report.page.samples import REASONS
from tagpr_rl.report.page.trace import tag_hues, trace_view
from tagpr_rl.report.page.traces import viewer_data
from tagpr_rl.report.page.views import forests, score_rows, seconds_text
from tagpr_rl.reward.components import Term
from tagpr_rl.run.layout import RunDir
from tagpr_rl.tags.schema import TagSchema, default_schema, load_schema

SECTIONS = (
    ("alerts", "Alerts"),
    ("results", "Results"),
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
    schema = load_schema(recipe.schema_file) if recipe.schema_file else default_schema()
    notes = {**BOUNDS, **CONTROLS, **dict.fromkeys(report["direct_models"], "answers without a thought")}
    curves = curve_groups(run, recipe)
    data = viewer_data(run, recipe, schema)
    tags = tag_curves(curves, chains_of(run, recipe), data)
    sweeps = sweeps_near(run)
    faithful = faithful_tests(run)
    source = script()
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            r=report,
            tasks=report["tasks"],
            device=recipe.platform.device,
            sections=_sections(report, sweeps, faithful),
            cards=_cards(report),
            score_rows=score_rows(report, notes),
            forests=forests(report),
            controls=_controls(report),
            official=_official(report),
            parse_table=_parse_table(report),
            stages=_stages(report),
            formulas=_formulas(recipe),
            components=reward_names(reward_terms(recipe)),
            curves=curves,
            tag_curves=tags,
            sweeps=sweeps,
            faithful=faithful,
            alerts=_alerts(report),
            prmu_evals=prmu_evals(run),
            prompt_rows=flat_rows(report["prompts"] or {}),
            chains=chains_view(report),
            prmu_rows=flat_rows(report["prmu"] or {}),
            schema=schema,
            hues=tag_hues(schema),
            tag_index={name: index for index, name in enumerate(schema.names)},
            samples=_samples(report, schema, recipe),
            reasons=REASONS,
            shown=data["shown"],
            traces=json_for_page(data) if data["traces"] else None,
            script=source,
            script_source=script_source(source),
        )
    )


def _sections(report: Row, sweeps: Sequence[Any], faithful: Sequence[Any]) -> list[tuple[str, str]]:
    """The sections that the page has."""
    absent = {"alerts": not report["alerts"], "ablations": not sweeps, "faithful": not faithful}
    return [(key, title) for key, title in SECTIONS if not absent.get(key)]


def _alerts(report: Row) -> list[dict[str, Any]]:
    """Alerts with their numbers written out."""
    return [
        {**alert, **{key: "-" if alert[key] is None else short(alert[key]) for key in ("value", "limit")}}
        for alert in report["alerts"]
    ]


def _cards(report: Row) -> list[dict[str, str]]:
    """Headline numbers, as far as they exist."""
    cards = []
    models = list(report["models"].items())
    for name, entry in dict.fromkeys((item[0], item[1]["mean"]) for item in (*models[:1], *models[-1:])):
        if entry is not None:
            cards.append({"value": f"{entry:.3f}", "label": f"mean score, {name}"})
    for name, entry in report["controls"].items():
        if entry["mean"] is not None:
            cards.append({"value": f"{entry['mean']:.3f}", "label": f"{report['control_model']}, {name} profile"})
    for key, values in (report["bounds"] or {}).items():
        if values.get("mean") is not None:
            cards.append({"value": f"{values['mean']:.3f}", "label": f"{key} ceiling"})
    seconds = [stage["seconds"] for stage in report["stages"] if stage["seconds"] is not None]
    if seconds:
        cards.append({"value": seconds_text(sum(seconds)), "label": f"{len(seconds)} finished stages"})
    return cards


def _controls(report: Row) -> list[dict[str, Any]]:
    """Controls with the score lost against the own profile; no loss if they had other questions."""
    own = report["models"].get(report["control_model"]) or {"mean": None, "n": None}
    rows = []
    for name, entry in report["controls"].items():
        same = own["n"] == entry["n"] and own["mean"] is not None and entry["mean"] is not None
        lost = own["mean"] - entry["mean"] if same else None
        rows.append(
            {"name": name, "mean": entry["mean"], "n": entry["n"], "lost": lost, "meaning": CONTROLS.get(name, "")}
        )
    return rows


def _official(report: Row) -> dict[str, Any] | None:
    """Tasks and metrics as rows; models, controls and baselines as columns."""
    columns = {**report["models"], **report["controls"], **report["baselines"]}
    tables = {name: {(m["task"], m["name"]): m for m in entry["metrics"]} for name, entry in columns.items()}
    keys = list(dict.fromkeys(key for table in tables.values() for key in table))
    if not keys:
        return None
    rows = [
        {"task": task, "metric": metric_name(name), "cells": [table.get((task, name)) for table in tables.values()]}
        for task, name in keys
    ]
    return {"names": list(tables), "rows": rows}


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
            "metrics": [(k, short(v)) for k, v in stage["metrics"].items() if v is not None][:8],
        }
        for stage in report["stages"]
    ]


def _formulas(recipe: Recipe) -> list[dict[str, str]]:
    """The reward of each GRPO stage as text; terms without weight are left out."""

    def text(terms: Sequence[Term]) -> str:
        shown = [f"{'' if term.weight == 1 else f'{term.weight:g} × '}{term.label}" for term in terms if term.weight]
        return f"total = {' + '.join(shown)}"

    stages = {name: stage for name, stage in recipe.stages.items() if isinstance(stage, GrpoStage)}
    return [{"stage": name, "text": text(stage.terms)} for name, stage in stages.items()]


def _samples(report: Row, schema: TagSchema, recipe: Recipe) -> list[dict[str, Any]]:
    """Samples with each response cut into pieces by the one parser."""
    prefilled = recipe.model.thought_prefilled
    return [
        {
            **sample,
            "responses": [
                {
                    **entry,
                    "model": model,
                    "direct": model in report["direct_models"],
                    "view": trace_view(entry["response"], schema, prefilled=prefilled),
                }
                for model, entry in sample["responses"].items()
            ],
        }
        for sample in report["samples"]
    ]


def flat_rows(value: Row, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as ("a.b", text) rows; lists of plain values on one line."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            rows += flat_rows(item, f"{name}.")
        elif isinstance(item, float):
            rows.append((name, short(item)))
        else:
            rows.append((name, ", ".join(map(str, item)) if isinstance(item, list) else str(item)))
    return rows
