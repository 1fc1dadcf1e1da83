"""What the plan says of a micro-batch, against what forward and backward pass of that micro-batch take, counted.

Each GPU recipe's own micro-batch, of the most tokens and all of them in the loss, goes through a small Qwen3 in
bfloat16 under emulated CUDA autocast, with the recipe's attention and recomputation. The plan's formula gets the small
model's shape.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import torch
from loss_memory import micro_batch, peak_bytes, tiny_model
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore
from verl.utils import tensordict_utils as tu
from verl.utils.fsdp_utils import apply_fsdp2
from verl.workers.engine.utils import prepare_micro_batches

from tagpr_rl.backend.forward import logprobs, packed_attention
from tagpr_rl.backend.forward.loss_tokens import LossTokenEngine
from tagpr_rl.config import GrpoStage, Recipe, SftStage, load_recipe
from tagpr_rl.config.platform import attention, checkpointing, packs
from tagpr_rl.plan import memory
from tagpr_rl.plan.shapes import ModelShape

pytestmark = [pytest.mark.stack, pytest.mark.torch]
ROOT = Path(__file__).resolve().parents[2]
FILES = [*sorted((ROOT / "recipes/lamp").glob("*.yaml")), ROOT / "recipes/world_qwen3_0.6b.yaml"]
LOSS_HEAVY = ModelShape("small", 3, 64, 4, 2, 16, 192, 4096, True)
"""As every shipped model at the recipes' lengths: logits take more than a block."""
BLOCK_HEAVY = ModelShape("small", 3, 64, 4, 2, 16, 192, 64, True)


@cache
def counted(tokens: int, longest: int, packed: bool, kernel: str, recompute: bool, shape: ModelShape) -> int:
    """Peak bytes of a micro-batch of `tokens` in sequences of `longest` (the last one shorter), weights apart."""
    model = tiny_model(
        shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
    )  # fmt: skip
    model.set_attn_implementation(kernel)
    if recompute:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    lengths = [longest] * (tokens // longest) + ([tokens % longest] if tokens % longest else [])
    batch = micro_batch(lengths, [length - 1 for length in lengths], shape.vocab, packed=packed)
    return peak_bytes(LossTokenEngine, model, batch)[0]


def planned(recipe: Recipe, stage: SftStage | GrpoStage, shape: ModelShape) -> float:
    return sum(part.bytes for part in memory.micro_batch_parts(recipe, shape, stage))


@pytest.mark.parametrize("shape", [LOSS_HEAVY, BLOCK_HEAVY], ids=["loss", "block"])
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_the_plan_is_within_ten_percent_of_what_is_counted(file: Path, shape: ModelShape) -> None:
    recipe = load_recipe(file)
    kernel = attention(recipe.platform, recipe.training)
    assert kernel == packed_attention.NAME
    for name in ("sft", "guided", "explore"):
        stage = recipe.stages[name]
        assert isinstance(stage, SftStage | GrpoStage)
        actual = counted(
            memory.micro_tokens(recipe, stage), memory.longest(recipe), packs(recipe.platform, recipe.training), kernel,
            checkpointing(recipe.platform, recipe.training), shape,
        )  # fmt: skip
        assert actual == pytest.approx(planned(recipe, stage, shape), rel=0.1), (name, actual)


def test_the_plan_is_right_without_recomputation_too() -> None:
    recipe = load_recipe(FILES[0], ("training.gradient_checkpointing=false", "training.max_tokens_per_device=4096"))
    stage = recipe.stages["sft"]
    assert isinstance(stage, SftStage)
    actual = counted(4096, memory.longest(recipe), True, packed_attention.NAME, False, LOSS_HEAVY)
    assert actual == pytest.approx(planned(recipe, stage, LOSS_HEAVY), rel=0.1)


@pytest.fixture
def eight_processes() -> Iterator[DeviceMesh]:
    """This process as one of eight; nothing is sent."""
    torch.distributed.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield init_device_mesh("cpu", (8,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "vocab, tokens, tied, fullest",
    [
        (64, 64, True, "block"), (20_000, 64, True, "embeddings"), (20_000, 64, False, "embeddings"),
        (20_000, 2048, False, "loss"),
    ],
)  # fmt: skip
def test_the_plan_of_a_sharded_step(
    vocab: int, tokens: int, tied: bool, fullest: str, eight_processes: DeviceMesh
) -> None:
    """All that a step of verl's FSDP2 allocates beside the shards of weights and moments, at its fullest."""
    recipe = load_recipe(ROOT / "recipes/lamp/qwen3_8b.yaml", ("training.max_tokens_per_device=2816",))
    stage = recipe.stages["sft"]
    assert isinstance(stage, SftStage)
    recipe = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"max_tokens_per_device": tokens})}
    )  # shorter than the recipe's longest sequence
    shape = ModelShape("small", 4, 256, 4, 2, 64, 768, vocab, tied)
    model = tiny_model(
        vocab, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=tied,
    ).float()  # fmt: skip
    model.set_attn_implementation(packed_attention.NAME)
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    dtypes = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=True)
    sharding = {"mesh": eight_processes, "mp_policy": dtypes, "reshard_after_forward": True}
    apply_fsdp2(model, sharding, {})
    batch = micro_batch([tokens // 4] * 4, [tokens // 4 - 1] * 4, vocab, packed=True)
    actual, _ = peak_bytes(LossTokenEngine, model, batch)
    parts = [part for part in memory.training_parts(recipe, shape, stage) if part.name not in ("weights", "optimizer")]
    assert actual == pytest.approx(sum(part.bytes for part in parts), rel=0.1), parts
    rule = parts[-1].formula
    assert fullest == ("embeddings" if "embeddings" in rule else "block" if "a block" in rule else "loss")


def test_no_packed_micro_batch_of_verl_s_has_more_tokens_than_planned() -> None:
    recipe = load_recipe(FILES[0])
    stage, limit = recipe.stages["guided"], memory.longest(recipe)
    assert isinstance(stage, GrpoStage)
    lengths = torch.randint(300, limit + 1, (64,), generator=torch.Generator().manual_seed(2)).tolist()
    batch = micro_batch(lengths, [100] * 64, 50, packed=True)
    planned_tokens = memory.micro_tokens(recipe, stage)
    tu.assign_non_tensor(batch, use_dynamic_bsz=True, max_token_len_per_gpu=recipe.training.max_tokens_per_device)
    parts, _ = prepare_micro_batches(batch)
    tokens = [int(part["input_ids"].offsets()[-1]) for part in parts]
    assert sum(tokens) == sum(lengths) and 0.8 * planned_tokens < max(tokens) <= planned_tokens


def test_the_plan_knows_the_loss_s_chunk() -> None:
    assert memory.CHUNK_ENTRIES == logprobs.CHUNK_ENTRIES
