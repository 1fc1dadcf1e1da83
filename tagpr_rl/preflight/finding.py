"""A finding of the check, and the run that is checked."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tagpr_rl.config import ChainsStage, EndpointBlock, Recipe, StageBase
from tagpr_rl.run.layout import RunDir

S = TypeVar("S", bound=StageBase)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: the key, its value, what is wrong, the remedy."""

    key: str
    """The recipe's key, dotted; "" if the text names it."""
    value: Any
    """The key's value; None = it is not shown."""
    wrong: str
    remedy: str = ""
    warning: bool = False
    """The run can work all the same."""
    on_machine: bool = False
    """It depends on the machine that the check runs on. `tagpr plan` of a run that belongs elsewhere only warns."""

    def __str__(self) -> str:
        value = "" if self.value is None else f"={self.value}"
        start = f"{self.key}{value}: " if self.key else ""
        return start + self.wrong + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class PlannedRun:
    """A run that has not started: what the checks look at."""

    recipe: Recipe
    folder: RunDir
    todo: Collection[str]
    """Stages that are not finished yet; a finished one needs nothing more."""
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def stages(self, kind: type[S]) -> Iterator[tuple[str, S]]:
        """(name, block) of the stages of a kind that are still to do."""
        for name, stage in self.recipe.stages.items():
            if name in self.todo and isinstance(stage, kind):
                yield name, stage

    def endpoints(self) -> Iterator[tuple[str, EndpointBlock]]:
        """(key, block) of the language models that chains stages still to do ask."""
        for name, stage in self.stages(ChainsStage):
            for role in ("teacher", "labeller"):
                block = getattr(stage, role)
                if isinstance(block, EndpointBlock) and block.kind in ("openai", "vllm"):
                    yield f"stages.{name}.{role}", block
