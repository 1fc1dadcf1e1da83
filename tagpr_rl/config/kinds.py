"""The kinds of stages: one row each. A new kind is a config class, a file in stages/ and a row here.

A stage reads earlier stages in two ways: the nearest one of a kind ("the data"), or one that its block names
(`init: sft`). Both must stand before it in the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from tagpr_rl.config.grpo import GrpoStage
from tagpr_rl.config.stage import StageBase, TrainingStage
from tagpr_rl.config.stages import (
    ChainsStage,
    DataStage,
    EvaluateStage,
    ModelStage,
    PrmuStage,
    PromptsStage,
    SftStage,
)

WEIGHTS = ("grpo", "model", "sft")
"""Kinds whose folder holds a policy's weights and tokenizer in `hf/`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the rest of the code must know of a kind of stage."""

    config: type[StageBase]
    """Class of the recipe's block; its field `kind` has the kind's name as default."""
    function: str
    """`module:function` that runs the stage: from a StageContext to a StageResult."""
    reads: Callable[[Any], tuple[str, ...]] = lambda stage: ()
    """From the block to kinds; the stage reads the nearest earlier stage of each."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Key of the block that names an earlier stage, or several -> the kinds that it may be of."""
    reads_named: Callable[[Any], tuple[str, ...]] | None = None
    """From the block to the named stages that it reads; None = all stages that the keys in `names` name."""
    uses_ray: bool = False
    """The stage works in Ray processes, and its result depends on the device."""

    @property
    def trains(self) -> bool:
        """The stage updates weights: it has steps, checkpoints and a metrics.jsonl."""
        return issubclass(self.config, TrainingStage)


def named_stages(stage: StageBase) -> list[tuple[str, str]]:
    """(key, stage) of every earlier stage that the block names."""
    pairs = []
    for key in KINDS[stage.kind].names:
        value = getattr(stage, key)
        values = () if value is None else (value,) if isinstance(value, str) else value
        pairs += [(key, name) for name in values]
    return pairs


def stages_read(stage: StageBase) -> tuple[str, ...]:
    """Stages that the block names and the stage reads. A GRPO stage may also name a folder, which is no stage."""
    kind = KINDS[stage.kind]
    return kind.reads_named(stage) if kind.reads_named else tuple(name for _, name in named_stages(stage))


def _grpo_reads(stage: GrpoStage) -> tuple[str, ...]:
    prmu = stage.prmu if stage.uses_prmu else None
    return tuple(name for name in (stage.init, prmu, stage.rollouts_from) if name is not None)


KINDS: dict[str, Kind] = {
    "data": Kind(DataStage, "tagpr_rl.stages.data:run"),
    "model": Kind(ModelStage, "tagpr_rl.stages.model:run", lambda stage: ("data",)),
    "prompts": Kind(PromptsStage, "tagpr_rl.stages.prompts:run", lambda stage: ("data", "model")),
    "chains": Kind(ChainsStage, "tagpr_rl.stages.chains:run", lambda stage: ("data", "model"), {"init": WEIGHTS}),
    "sft": Kind(
        SftStage,
        "tagpr_rl.stages.sft:run",
        lambda stage: ("data",) if stage.dataset == "direct" else ("data", "chains"),
        {"init": WEIGHTS},
        uses_ray=True,
    ),
    "prmu": Kind(PrmuStage, "tagpr_rl.stages.prmu:run", lambda stage: ("chains",), {"init": WEIGHTS}, uses_ray=True),
    "grpo": Kind(
        GrpoStage,
        "tagpr_rl.stages.grpo:run",
        lambda stage: ("prompts",),
        {"init": WEIGHTS, "prmu": ("prmu",)},
        _grpo_reads,
        uses_ray=True,
    ),
    "evaluate": Kind(
        EvaluateStage, "tagpr_rl.stages.evaluate:run", lambda stage: ("data",), {"models": WEIGHTS}, uses_ray=True
    ),
}


def _union() -> Any:
    return reduce(or_, (kind.config for kind in KINDS.values()))


class _AnyKind:
    """Validates a stage's block by the class that its `kind` names in KINDS, also in one added after the import."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(Annotated[_union(), Field(discriminator="kind")])


if TYPE_CHECKING:
    Stage = StageBase
else:
    Stage = Annotated[_union(), _AnyKind()]
    """A stage's block of any kind."""
