"""How much each tag is used over the steps: as training logged it, else counted in the sampled responses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagpr_rl.report.charts.curves import Chain, CurveGroup, Figure
from tagpr_rl.report.charts.plots import LineChart, Point
from tagpr_rl.report.page.names import MetricName


@dataclass(frozen=True, slots=True)
class TagCurves:
    """Charts of the tags, with a sentence on their source."""

    figures: tuple[Figure[LineChart], ...]
    note: str


def tag_curves(groups: Sequence[CurveGroup], chains: Sequence[Chain], traces: Mapping[str, Any]) -> TagCurves:
    """What training logged; if it logged nothing, the use of each tag in `traces` (`traces.viewer_data`)."""
    logged = tuple(figure for group in groups for figure in group.tags)
    if logged:
        return TagCurves(
            logged,
            "Use: share of a step's responses that hold the tag. Valid: share of its steps that the tag's constraints "
            "accept. As logged while training.",
        )
    figures = tuple(figure for chain in chains for figure in counted(chain, traces))
    rollouts = sum("r" in trace for trace in traces["traces"])
    return TagCurves(
        figures,
        f"Share of responses that hold the tag, counted in the {rollouts:,} rollouts below: these stages logged no tag "
        "figures. A response that does not parse holds none.",
    )


def counted(chain: Chain, traces: Mapping[str, Any]) -> list[Figure[LineChart]]:
    """One chart per tag of the schema: share of the sampled responses of each step that hold it."""
    shifts = {part.name: part.shift for part in chain.parts}
    held: dict[float, list[set[int]]] = defaultdict(list)
    for trace in traces["traces"]:
        stage, step, _ = traces["groups"][trace["g"]]
        name = traces["stages"][stage]
        if "r" in trace and step is not None and name in shifts:
            held[shifts[name] + step].append({kind for kind, _ in trace["p"] if kind >= 0})
    if not held:
        return []
    figures = []
    for index, (tag, _) in enumerate(traces["tags"]):
        points: list[Point] = [(x, sum(index in tags for tags in held[x]) / len(held[x])) for x in sorted(held)]
        figures.append(chain.figure(MetricName(f"tag/{tag}", tag, ""), [("use", "c0", points)], (0.0, 1.0)))
    return [figure for figure in figures if figure is not None]
