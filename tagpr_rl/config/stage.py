"""What the blocks of all stages share: a seed, and for those that update weights an engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.base import Closed, Count, Seed


class StageBase(Closed):
    """What every stage has."""

    kind: str
    """What the stage does: a row of the table in config/kinds.py."""
    seed: Seed = 1
    """Seed of every random choice that the stage makes."""


class DeepSpeedBlock(Closed):
    """ZeRO settings of a stage with `strategy: deepspeed`."""

    zero_stage: Annotated[int, Field(ge=1, le=3)] = 2
    """1 shards optimizer states over the devices, 2 gradients as well, 3 weights as well."""
    offload_optimizer: bool = False
    """Keep optimizer states, and make updates, in host memory."""
    offload_params: bool = False
    """Keep weights in host memory between uses; needs zero_stage 3."""
    universal_checkpoints: bool = True
    """Convert a checkpoint that another number of devices wrote; false refuses it."""

    @model_validator(mode="after")
    def _offload_fits(self) -> DeepSpeedBlock:
        if self.offload_params and self.zero_stage != 3:
            raise ValueError(f"offload_params needs zero_stage: 3, and it is {self.zero_stage}")
        return self


class TrainingStage(StageBase):
    """A stage that updates weights."""

    init: str
    """Stage whose weights to start from."""
    steps: Count
    """Updates of the weights."""
    save_every: Count | None = None
    """Steps between checkpoints; null = one, after the last step."""
    keep_checkpoints: Count = 2
    """The newest checkpoints that stay on disk while the stage trains."""
    strategy: Literal["fsdp2", "deepspeed"] = "fsdp2"
    """The engine that shards and updates the weights."""
    deepspeed: DeepSpeedBlock | None = None
    """ZeRO settings, only with `strategy: deepspeed`; null = its defaults."""

    @model_validator(mode="after")
    def _deepspeed_used(self) -> TrainingStage:
        if self.deepspeed is not None and self.strategy != "deepspeed":
            raise ValueError(
                f"there is a `deepspeed` block, but strategy is {self.strategy}; set strategy: deepspeed or "
                "deepspeed: null"
            )
        return self

    def zero(self) -> DeepSpeedBlock:
        """The ZeRO settings in force."""
        return self.deepspeed or DeepSpeedBlock()
