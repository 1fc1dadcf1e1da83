"""What a vLLM engine takes of each of its devices, and the sequences that it works on at a time."""

from __future__ import annotations

from dataclasses import dataclass

from tagpr_rl.config import EndpointBlock, Recipe
from tagpr_rl.config.endpoints import CHAT_ROOM
from tagpr_rl.config.placement import OFFLINE_SHARE
from tagpr_rl.plan.memory import GIB, Part, compute_bytes, longest
from tagpr_rl.plan.shapes import ModelShape

MAX_SEQUENCES = 256
"""Responses that one vLLM engine works on at a time (backend.trainer.overrides)."""
ENGINE_EXTRA_GIB = 3.0
"""Activations and CUDA graphs inside vLLM's share (an assumption)."""


@dataclass(frozen=True, slots=True)
class EngineSize:
    """One vLLM engine."""

    shape: ModelShape
    tensor: int
    """Devices that share its weights."""
    length: int
    """Longest sequence in tokens, prompt and response."""
    share: float
    """Share of a GPU's memory that it takes."""
    sequences: int = MAX_SEQUENCES
    """Most sequences at a time."""
    who: str = "engine"
    """Whose it is; first word of its parts' names."""
    remedy: str = "raise platform.vllm_gpu_utilization or placement.tensor_parallel"
    """What to do if it is too small."""


def rollout_engine(recipe: Recipe, shape: ModelShape) -> EngineSize:
    """The engine of a GRPO stage's rollouts."""
    return EngineSize(shape, recipe.placement.tensor_parallel, longest(recipe), recipe.platform.vllm_gpu_utilization)


def evaluation_engine(recipe: Recipe, shape: ModelShape, length: int) -> EngineSize:
    """The engine of an evaluation (backend.rollout.generate), for sequences of `length` tokens."""
    remedy = "raise placement.tensor_parallel"
    return EngineSize(shape, recipe.placement.tensor_parallel, length, OFFLINE_SHARE, remedy=remedy)


def teacher_engine(recipe: Recipe, role: str, block: EndpointBlock, shape: ModelShape) -> EngineSize:
    """The engine of a block of kind vllm (backend.rollout.offline)."""
    return EngineSize(
        shape,
        block.tensor_parallel or recipe.placement.tensor_parallel,
        block.max_model_len or recipe.data.prompt.max_tokens + CHAT_ROOM + block.max_tokens,
        OFFLINE_SHARE,
        min(MAX_SEQUENCES, block.concurrency),
        role,
        f"raise {role}.tensor_parallel, or name a smaller model",
    )


def engine_parts(recipe: Recipe, engine: EngineSize, memory: float | None) -> tuple[list[Part], int, tuple[str, ...]]:
    """(parts of an engine on one of its devices, which has `memory` bytes; sequences that fit at a time; problems)."""
    tensor, shape, length = engine.tensor, engine.shape, engine.length
    width, cpu = compute_bytes(recipe), recipe.platform.device == "cpu"
    weights = width * shape.parameters / tensor
    per_token = shape.kv_bytes(width) / min(tensor, shape.kv_heads)
    if cpu:
        cache = float(recipe.platform.vllm_memory_mb << 20)
        rule = "platform.vllm_memory_mb"
    elif memory is None:
        cache = min(engine.sequences, 64) * length * per_token
        rule = f"64 sequences x {length:,} tokens x {per_token:,.0f} B (no device named)"
    else:
        cache = engine.share * memory - weights - ENGINE_EXTRA_GIB * GIB
        rule = f"{engine.share} of the device - weights - {ENGINE_EXTRA_GIB} GiB = {cache / per_token:,.0f} tokens"
    fits = int(cache // (length * per_token))
    problems = []
    if fits < 1:
        problems.append(
            f"platform.vllm_memory_mb={recipe.platform.vllm_memory_mb} holds no sequence of {length} tokens; raise it"
            if cpu
            else f"{shape.name}'s weights take {weights / GIB:.1f} GiB of vLLM's share and leave no room for one "
            f"sequence of {length} tokens; {engine.remedy}"
        )
    parts = [
        Part(f"{engine.who} weights", weights, f"{width} B x {shape.parameters:,} / tensor_parallel {tensor}"),
        Part(f"{engine.who} KV cache", max(0.0, cache), rule),
    ]
    if not cpu:
        parts.append(Part(f"{engine.who} work space", ENGINE_EXTRA_GIB * GIB, "activations, CUDA graphs"))
    return parts, max(1, min(fits, engine.sequences)), tuple(problems)
