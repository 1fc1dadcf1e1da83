"""How much each tag is used over the steps: as training logged it, else counted in the sampled responses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tagpr_rl.report.charts.curves import Chain, Figure, without_constant
from tagpr_rl.report.charts.plots import LineChart, Point
from tagpr_rl.report.page.names import MetricName


@dataclass(frozen=True, slots=True)
class TagCurves:
    """Charts of the tags, with a sentence on their source."""

    figures: tuple[Figure[LineChart], ...]
    constant: tuple[str, ...]
    """What did not change and so has no chart, with its value."""
    note: str


def tag_curves(chains: Sequence[Chain], traces: Mapping[str, Any]) -> TagCurves:
    """What training logged; if it logged nothing, the use of each tag in `traces` (`traces.viewer_data`)."""
    logged = [figure for chain in chains for figure in tag_figures(chain)]
    if logged:
        note = (
            "Use: share of a step's responses that hold the tag. Valid: share of its steps that the tag's constraints "
            "accept. As logged while training."
        )
        return TagCurves(*without_constant(logged), note)
    figures = [figure for chain in chains for figure in counted(chain, traces)]
    rollouts = sum("r" in trace for trace in traces["traces"])
    note = (
        f"Share of responses that hold the tag, counted in the {rollouts:,} rollouts below: these stages logged no tag "
        "figures. A response that does not parse holds none."
    )
    return TagCurves(*without_constant(figures), note)


def tag_figures(chain: Chain) -> list[Figure[LineChart]]:
    """Use and validity of each tag over the steps, as logged; none if the stage did not log them."""
    names = [key.removeprefix("tag/").removesuffix("/use") for key in chain.keys("tag/", "/use")]
    figures = [
        chain.figure(
            MetricName(f"tag/{name}", name, ""),
            [("use", "c0", chain.points(f"tag/{name}/use")), ("valid", "c1", chain.points(f"tag/{name}/valid"))],
            (0.0, 1.0),
        )
        for name in names
    ]
    words = [
        (name, f"c{i % 8}", points) for i, name in enumerate(names) if (points := chain.points(f"tag/{name}/words"))
    ]
    figures.append(chain.figure(MetricName("tag/words", "words per step", "mean words of a step with the tag"), words))
    return [figure for figure in figures if figure is not None]


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
