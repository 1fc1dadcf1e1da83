"""The blocks `model` and `lora`: which weights are trained, and whether all of them."""

from __future__ import annotations

from typing import Annotated, Literal

from tagpr_rl.config.base import Closed, Count, Once, Seed, UserPath

VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Adapter ranks that vLLM serves; verl rounds up to the next one (vllm/config/lora.py MaxLoRARanks)."""


class TinyBlock(Closed):
    """A random Qwen3 and its tokenizer, built from the training text."""

    hidden: Count = 64
    """Width of the hidden states."""
    layers: Count = 3
    """Number of transformer blocks."""
    heads: Count = 4
    """Attention heads of a block."""
    ffn: Count = 192
    """Width of a block's feed-forward layer."""
    max_vocab: Count = 4096
    """Largest number of tokens in the vocabulary."""
    seed: Seed = 1
    """Seed of the random weights."""


class ModelBlock(Closed):
    """The policy that the run starts from."""

    path: UserPath | None = None
    """A Hugging Face folder with model and tokenizer, a hub name (Qwen/Qwen3-8B), or a GGUF file, which is converted
    once; null = build the tiny one."""
    tiny: TinyBlock = TinyBlock()
    """Sizes of the model that is built if there is no path."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of forward passes, in training and in rollouts; the trained weights stay in float32."""
    chat_template: UserPath | None = None
    """A Jinja file with the chat template to use in place of the model's own; null = the model's."""
    thought_prefilled: bool | None = None
    """What the chat template must be found to do: open `<think>` itself (true) or not (false); null = either."""


class LoraBlock(Closed):
    """Low-rank adapters for the SFT and GRPO stages (PEFT, as verl builds them)."""

    rank: Count = 32
    """Rank of the adapters' two matrices."""
    alpha: Count = 32
    """The adapters' product is multiplied by alpha / rank."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Once] = "all-linear"
    """Names of linear layers, for example [q_proj, v_proj]. The output layer is never among `all-linear`."""
    merge: bool = False
    """Send merged bfloat16 weights to the rollout instead of the adapter: faster tokens, slower transfer, and
    rounded (verl merges in bfloat16). What a stage publishes is always merged, in the weights' own precision."""
