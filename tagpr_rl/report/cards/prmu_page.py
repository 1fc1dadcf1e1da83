"""Shows the result of `tagpr study prmu`: the main figures as a list, and a page with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagpr_rl.report.charts.curves import Figure
from tagpr_rl.report.charts.plots import ForestChart, LineChart, forest_chart, line_chart, short
from tagpr_rl.report.page.embed import environment
from tagpr_rl.report.page.names import PAIR_KINDS, MetricName, task_label, words
from tagpr_rl.report.page.read import read_json
from tagpr_rl.run.layout import RunDir

Facts = Mapping[str, Any]
_RANKINGS = ("prmu", "generic", "shuffled", "majority", "longest", "oracle")


def prmu_summary(facts: Facts) -> list[tuple[str, str]]:
    """The main figures as (label, text)."""
    held, only, best = facts["held_out"], facts["user_only"], facts["best_of_n"]
    seen = facts["training_users"].get("seen/accuracy")
    correlation = best["correlation"]
    rows = [
        ("accuracy: training users, other questions", number(seen)),
        ("accuracy: held-out users", spread(held.get("accuracy"))),
        ("accuracy: held-out users, mean over users", number(held.get("user_macro"))),
        ("accuracy: held-out users, scored for nobody", spread(held.get("generic"))),
        ("accuracy: written for another user, scored for a third", number(held.get("shuffled"))),
        ("accuracy: pairs that differ only in the user, own user", spread(only.get("own"))),
        ("accuracy: the same pairs, a third user", spread(only.get("shuffled"))),
        ("accuracy: the policy's own responses, right above wrong", spread(facts["policy"].get("accuracy"))),
        ("expected calibration error", number(held["calibration"]["ece"] if held else None)),
    ]
    rows += [
        (f"task score: best of {best['n']} by {name}, gain over the mean", spread(best["rankings"][name]["gain"]))
        for name in _RANKINGS
    ]
    return [
        *rows,
        ("correlation with the task score, within a question", number(correlation["task_score"])),
        ("better response scored higher, of one question's", number(correlation["auc"])),
        ("correlation with the length, within a question", number(correlation["length"])),
        ("probe: a step said twice raises the score", spread(facts["probes"]["padding"].get("raised"))),
        ("probe: chosen above a copy of the profile", spread(facts["probes"]["copying"].get("chosen_above"))),
        (
            "probe: chosen above a malformed version of itself",
            spread(facts["probes"].get("spoiling", {}).get("chosen_above")),
        ),
    ]


_SETS = ("seen", "unseen")
_FIGURES: Mapping[str, str] = {
    "accuracy": "all pairs",
    "user_macro": "all pairs, mean over users",
    "generic": "all pairs, scored for nobody",
    "generic_cross_profile": "against a response to another user's profile, scored for nobody",
    "shuffled": "against a response to another user's profile, scored for a third user",
    **PAIR_KINDS,
}
"""Rows of the table of a PRMU's accuracies, by the key of prmu.json."""
_OTHERS: Mapping[str, str] = {
    "score_mean": "mean raw score",
    "score_std": "standard deviation of the raw scores",
    "train_seconds": "seconds of training",
    "train/pairs": "pairs trained on",
    "train/dropped": "pairs left out",
}


@dataclass(frozen=True, slots=True)
class PrmuView:
    """prmu.json in words."""

    counts: tuple[tuple[str, str], ...]
    """(pairs, users) seen and unseen."""
    accuracy: float | None
    """On pairs of users that training never showed."""
    rows: list[tuple[str, float | None, float | None]]
    """(what is ordered, accuracy on seen users, on unseen users)."""
    rest: list[tuple[str, str]]


def prmu_view(facts: Facts | None) -> PrmuView | None:
    """The training's own accuracies of a PRMU; None without prmu.json."""
    if not facts:
        return None

    def value(group: str, key: str) -> float | None:
        found = facts.get(f"{group}/{key}")
        return float(found) if isinstance(found, int | float) else None

    inside = [key.split("/", 1)[1] for key in facts if key.split("/")[0] in _SETS and "/" in key]
    keys = [*(key for key in _FIGURES if key in inside), *(k for k in dict.fromkeys(inside) if k not in _FIGURES)]
    rows = [
        (_FIGURES.get(key, f"all pairs of {words(key)}"), value("seen", key), value("unseen", key))
        for key in keys
        if key not in ("pairs", "users")
    ]
    counts = tuple((f"{int(value(group, 'pairs') or 0):,}", f"{int(value(group, 'users') or 0):,}") for group in _SETS)
    plain = {key: item for key, item in facts.items() if key.split("/")[0] not in _SETS}
    rest = [(_OTHERS.get(key, words(key)), short(item)) for key, item in plain.items() if isinstance(item, int | float)]
    return PrmuView(counts, value("unseen", "accuracy"), rows, rest)


@dataclass(frozen=True, slots=True)
class PrmuEval:
    """The evaluation of one PRMU, as the run's report shows it."""

    stage: str
    link: str
    """Link from the run's folder to the page of this evaluation."""
    summary: list[tuple[str, str]]
    forests: list[ForestChart]
    figures: list[Figure[LineChart]]


def prmu_evals(run: RunDir) -> list[PrmuEval]:
    """The PRMU evaluations of a run, by file name. Other JSON files in the folder are ignored."""
    evals = []
    for path in sorted(run.prmu_eval.glob("*.json")) if run.prmu_eval.is_dir() else []:
        facts = read_json(path)
        if isinstance(facts, dict) and {"stage", "held_out", "best_of_n"} <= facts.keys():
            link = f"{run.prmu_eval.name}/{path.with_suffix('.html').name}"
            evals.append(PrmuEval(facts["stage"], link, prmu_summary(facts), prmu_forests(facts), prmu_figures(facts)))
    return evals


def spread(values: Sequence[float] | None) -> str:
    """`0.912 [0.895, 0.930]`."""
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]" if values else "not measured"


def number(value: float | None) -> str:
    """Three decimals; "not measured" for None."""
    return "not measured" if value is None else f"{value:.3f}"


def prmu_page(facts: Facts) -> str:
    """One self-contained HTML page."""
    training = prmu_view(facts["training_users"]) or PrmuView((), None, [], [])
    return environment().get_template("prmu.html.j2").render(
        f=facts, summary=prmu_summary(facts), forests=prmu_forests(facts), figures=prmu_figures(facts),
        training=training, hues={},
    )  # fmt: skip


def prmu_forests(facts: Facts) -> list[ForestChart]:
    """Accuracies with intervals: held-out users, and pairs that differ only in the user."""
    held, only = facts["held_out"], facts["user_only"]
    charts = []
    if held:
        rows = [("all", "model", *held["accuracy"]), ("no user", "control", *held["generic"])]
        for what in ("by_kind", "by_task"):
            for name, entry in held[what].items():
                label = task_label(name) if what == "by_task" else name.replace("_profile", "")
                rows.append((label, "model", *entry["accuracy"]))
        charts.append(forest_chart("pairwise accuracy, held-out users", rows, [("chance", 0.5)]))
    if only.get("own"):
        rows = [("own user", "model", *only["own"]), ("third user", "control", *only["shuffled"])]
        charts.append(forest_chart("pairs that differ only in the user", rows, [("chance", 0.5)]))
    return charts


def prmu_figures(facts: Facts) -> list[Figure[LineChart]]:
    """Calibration, cold start, best of n."""
    figures = []
    held, best = facts["held_out"], facts["best_of_n"]
    if held:
        bins = held["calibration"]["bins"]
        points = [(row["confidence"], row["accuracy"]) for row in bins]
        chart = line_chart(
            [("right", "c0", points), ("ideal", "c1", [(0.5, 0.5), (1.0, 1.0)])],
            x_range=(0.5, 1.0), y_range=(0.4, 1.0), width=330, height=192, x_label="confidence",
        )  # fmt: skip
        meaning = "share of pairs ordered rightly against the confidence sigmoid(|difference|)"
        figures.append(Figure(MetricName("calibration", "calibration", meaning), chart))
    if facts["cold_start"]:
        points = [(float(row["items"]), row["accuracy"][0]) for row in facts["cold_start"]]
        chart = line_chart(
            [("accuracy", "c0", points)], y_range=(0.4, 1.0), width=330, height=192, x_label="items of the profile"
        )  # fmt: skip
        meaning = "accuracy against the number of profile items shown to PRMU"
        figures.append(Figure(MetricName("cold_start", "cold start", meaning, "up"), chart))
    series = [
        (
            name,
            f"c{index}",
            [(float(n), v) for n, v in zip(best["sizes"], best["rankings"][name]["score"], strict=True)],
        )
        for index, name in enumerate(_RANKINGS)
    ]
    chart = line_chart(series, width=330, height=192, x_label="n responses")
    meaning = f"task score of the response ranked first of n, {best['questions']} questions; oracle = the best there is"
    figures.append(Figure(MetricName("best_of_n", "best of n", meaning, "up"), chart))
    return figures
