"""Tiny random language models of several families, written for the tests."""

from __future__ import annotations

from typing import Any

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, str, str]] = {
    "llama": ("LlamaConfig", "llama3", "model.layers.0.self_attn.q_proj.weight"),
    "smollm2": ("LlamaConfig", "smollm2", "model.layers.0.self_attn.q_proj.weight"),
    "qwen2": ("Qwen2Config", "r1_distill", "model.layers.0.self_attn.q_proj.bias"),
    "qwen3": ("Qwen3Config", "qwen3", "model.layers.0.self_attn.q_norm.weight"),
    "gemma3": ("Gemma3TextConfig", "gemma", "model.layers.0.pre_feedforward_layernorm.weight"),
}
"""Family -> its configuration, a tokenizer of made_tokenizers in its manner, and a tensor that no other one has."""
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
"""One family of each architecture, for tests that read no text."""


def small_model(name: str, vocab_size: int, *, tied: bool) -> Any:
    """A random fp32 model of family `name` in evaluation mode, always the same; `tied`: one tensor for both ends."""
    import torch
    import transformers

    configuration, _, tensor = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, configuration)(vocab_size=vocab_size, tie_word_embeddings=tied, **SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert tensor in model.state_dict()
    return model.eval()
