"""The rubric: one response -> every reward component and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tagpr_rl.reward.components import (
    RESERVED,
    TOTAL,
    Component,
    Term,
    load_components,
    short_form,
    value_of,
    weighted_sum,
)
from tagpr_rl.reward.response import ResponseParts, read_response, response_parts
from tagpr_rl.reward.task import check_gold
from tagpr_rl.tags.schema import TagSchema

PRMU_STATUSES = ("scored", "off", "masked")
"""PRMU scored the response; the stage does not use PRMU; PRMU gave no score, so the update leaves the response out."""


@dataclass(frozen=True, slots=True)
class RewardOutput:
    """The reward of one response."""

    total: float
    """The weighted sum of the stage's terms."""
    components: Mapping[str, float]
    """The same keys for every response of a stage, each in its component's range."""
    parse_status: str
    """A `ParseStatus`."""
    prmu_status: str
    """One of PRMU_STATUSES. A component that needs PRMU is 0 unless it is "scored"."""
    parts: ResponseParts
    """The response's tagged steps, with spans in characters."""

    def row(self) -> dict[str, float | str]:
        """A flat row: total, components, parse_status, prmu_status. Files have the numbers as `reward_<key>`."""
        statuses = {"parse_status": self.parse_status, "prmu_status": self.prmu_status}
        return {TOTAL: self.total, **self.components, **statuses}


@dataclass(frozen=True, slots=True)
class Rubric:
    """Scores responses; holds no state between them."""

    schema: TagSchema
    terms: tuple[Term, ...] = field(default_factory=short_form)
    """The summands of the reward, in the order in which they are added."""
    prefilled: bool = False
    """See `tags.grammar.parse`."""
    folder: Path | None = None
    """Where users' reward modules are; None = the working directory."""
    components: tuple[Component, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", load_components(self.terms, self.folder))

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of `RewardOutput.row`, in its order."""
        return (TOTAL, *(component.name for component in self.components), *RESERVED[1:])

    def score(
        self, response: str, *, task: str, gold: str, prmu: float | None = None, prmu_status: str = "off"
    ) -> RewardOutput:
        """Score one response: `total` is the sum of weight * value over `terms`. The response is parsed once.

        Args:
            response: the decoded response without special tokens.
            task: LaMP task name.
            gold: gold answer.
            prmu: PRMU's normalised score in [0, 1] if and only if `prmu_status` is "scored".
            prmu_status: one of PRMU_STATUSES.

        Raises:
            ValueError: `prmu` and its status disagree, or `prmu` is not in [0, 1] (NaN included).
            TagprError: unknown task or unusable gold, also if the response is malformed; a user's component whose
                value is no number in its range.
        """
        check_gold(task, gold)  # bad data is reported whatever the policy wrote
        prmu_value = _checked_prmu(prmu, prmu_status)
        read = read_response(response, self.schema, task=task, gold=gold, prmu=prmu_value, prefilled=self.prefilled)
        values = {component.name: value_of(component, read) for component in self.components}
        return RewardOutput(
            weighted_sum(self.terms, values), values, read.status.value, prmu_status, response_parts(read)
        )


def _checked_prmu(prmu: float | None, status: str) -> float:
    if status not in PRMU_STATUSES:
        raise ValueError(f"prmu_status must be one of {', '.join(PRMU_STATUSES)}, got {status!r}")
    if (prmu is not None) != (status == "scored"):
        raise ValueError(f"prmu {prmu!r} with prmu_status {status!r}: a score if and only if 'scored'")
    if prmu is None:
        return 0.0
    if not 0.0 <= prmu <= 1.0:  # false for NaN
        raise ValueError(f"prmu must be in [0, 1], got {prmu!r}")
    return float(prmu)
