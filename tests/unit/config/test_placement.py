"""Settings that cannot work together are refused, all at once, each with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagpr_rl.backend.trainer.overrides import StagePaths, grpo_overrides
from tagpr_rl.config import load_recipe
from tagpr_rl.config.placement import repeats
from tagpr_rl.run.manifest import stage_config
from tagpr_rl.types import TagprError

DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo.yaml"
CUDA = ("platform.device=cuda", "platform.devices_per_node=8")


@pytest.mark.parametrize(
    "overrides, told",
    [
        (("placement.tensor_parallel=3", *CUDA), "tensor_parallel=3 does not divide platform.devices_per_node=8"),
        (("placement.tensor_parallel=2", "platform.devices_per_node=2"), "with platform.device=cpu use 1"),
        (
            (
                *CUDA,
                "placement.rollout=separate",
                "placement.rollout_devices_per_node=4",
                "placement.tensor_parallel=8",
            ),
            "does not divide placement.rollout_devices_per_node=4",
        ),
        (("placement.rollout_nodes=2",), "need placement.rollout=separate"),
        (("placement.rollout=separate", "lora.rank=8"), "set lora.merge=true"),
        (("placement.rollout=separate", "stages.guided.reuse_rollout_logprobs=false"), "set it true"),
        (("placement.rollout=separate", "platform.deterministic=true"), "use placement.rollout=colocated"),
        (("placement.prmu=shared",), "placement.prmu=shared needs an accelerator"),
        (("platform.vllm_model_runner=v2",), "use auto or v1"),
        (("training.attention=flash_attention_2",), "use auto, sdpa or eager"),
        (
            (*CUDA, "training.attention=sdpa", "training.sequence_parallel=2"),
            "needs training.attention=flash_attention_2",
        ),
        ((*CUDA, "training.sequence_parallel=3"), "sequence_parallel=3 does not divide the 8 devices"),
        ((*CUDA, "training.fsdp_size=3"), "fsdp_size=3 does not divide the 8 devices"),
        (("training.offload_params=true",), "nothing to offload to"),
        (("training.max_tokens_per_device=600",), "below the longest sequence of 672 tokens"),
        (("lora.rank=1024",), "vLLM serves ranks up to 512"),
        (("lora.ranks=8",), "did you mean 'rank'?"),
        (("placement.prmu=cuda",), "placement.prmu"),
        (("lora.rank=8", "stages.sft.strategy=deepspeed"), "stages.sft.strategy=deepspeed does not train LoRA"),
        ((*CUDA, "training.fsdp_size=4", "stages.sft.strategy=deepspeed"), "training.fsdp_size is FSDP2's"),
    ],
)
def test_refused(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(TagprError) as error:
        load_recipe(DEMO, overrides)
    assert told in str(error.value)


def test_all_at_once() -> None:
    with pytest.raises(TagprError) as error:
        load_recipe(DEMO, ("placement.prmu=shared", "training.offload_params=true", "stages.guided.init=sfd"))
    text = str(error.value)
    assert "placement.prmu" in text and "offload" in text and "did you mean 'sft'?" in text


def test_a_stage_is_made_again_for_another_adapter_or_a_separate_rollout_only() -> None:
    plain, where = load_recipe(DEMO), ("placement.prmu=shared", "training.offload_params=true", *CUDA)
    lora, cuda = load_recipe(DEMO, ("lora.rank=8",)), load_recipe(DEMO, CUDA)
    separate = load_recipe(DEMO, ("placement.rollout=separate",))
    for name in ("sft", "guided"):
        assert stage_config(lora, name) != stage_config(plain, name)
    assert stage_config(lora, "prmu") == stage_config(plain, "prmu")
    assert stage_config(separate, "sft") == stage_config(plain, "sft")
    assert stage_config(separate, "guided") != stage_config(plain, "guided")
    assert stage_config(load_recipe(DEMO, where), "guided") == stage_config(cuda, "guided")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), True),
        (("platform.deterministic=false",), False),
        (("placement.rollout=separate",), False),
        (CUDA, False),
        ((*CUDA, "platform.deterministic=true"), True),
    ],
)
def test_a_run_repeats_by_default_where_that_was_measured(overrides: tuple[str, ...], expected: bool) -> None:
    """A prompt stays whole then. Only a GPU's training kernels must be asked for it."""
    recipe = load_recipe(DEMO, overrides)
    assert repeats(recipe.platform, recipe.placement) is expected
    keys = grpo_overrides(recipe, "guided", StagePaths(*[Path("x")] * 4))
    assert ("actor_rollout_ref.rollout.enable_chunked_prefill" in keys) is expected
    engine = "actor_rollout_ref.actor.fsdp_config.full_determinism"
    assert keys.get(engine, False) is (expected and recipe.platform.device == "cuda")
