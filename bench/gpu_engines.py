"""What bench/gpu.py measures an update on: a policy with random weights, GRPO's loss, and the engines that train it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tagpr_rl.backend.forward.logprobs import token_logprobs
from tagpr_rl.plan.shapes import ModelShape


def config_of(shape: ModelShape) -> Any:
    """The transformers config of a shape."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied, max_position_embeddings=32_768, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip


def policy(shape: ModelShape, device: str, dtype: torch.dtype, checkpointing: bool) -> Any:
    """A causal model with random weights, made on the device."""
    from transformers import Qwen3ForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(config_of(shape))
    finally:
        torch.set_default_dtype(before)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def grpo_loss(model: Any, ids: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Clipped policy gradient, token mean, over the last R tokens of each row (the responses).

    ids [B, T]; old [B, R] log-probabilities; advantages [B].
    """
    new = last_logprobs(model, ids, old.shape[1])
    ratio = (new - old).exp()
    gain = advantages[:, None]
    return -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.28) * gain).mean()


def sft_loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Mean negative log-probability of every token but the first; ids [B, T]."""
    return -last_logprobs(model, ids, ids.shape[1] - 1).mean()


def last_logprobs(model: Any, ids: torch.Tensor, size: int) -> torch.Tensor:
    """Log-probabilities [B, R] of the last R = `size` tokens of ids [B, T], as a run computes them: logits of these
    tokens alone, and a softmax in chunks."""
    logits = model(input_ids=ids, logits_to_keep=size + 1).logits[:, :-1].flatten(0, 1)
    labels = ids[:, -size:].flatten()
    ones = torch.ones(labels.shape, device=labels.device)
    return token_logprobs(logits, labels, ones, entropies=False)[0].view(-1, size)


def with_lora(model: Any, rank: int = 16) -> Any:
    """The model with frozen weights and trainable adapters of every linear layer (peft)."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """A process group of one, as FSDP2 and DeepSpeed ask for; listens on loopback."""
    import torch.distributed as dist

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


Update = Callable[[Callable[[Any], torch.Tensor], int], None]
"""(loss of a model, micro-batches) -> one optimizer update."""


def plain_engine(model: Any) -> Update:
    """bf16 weights, gradients and AdamW states: 8 bytes a parameter."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=trained[0].is_cuda)

    def update(loss_of: Callable[[Any], torch.Tensor], micro: int) -> None:
        for _ in range(micro):
            (loss_of(model) / micro).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def fsdp2_engine(model: Any, device: str) -> Update:
    """fp32 weights and states, bf16 compute, sharded over the one device: what a run does on each of many."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device, (1,))
    rule = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.modules():
        if type(block).__name__ == "Qwen3DecoderLayer":
            fully_shard(block, mesh=mesh, mp_policy=rule)
    fully_shard(model, mesh=mesh, mp_policy=rule)
    return plain_engine(model)


def zero_engine(model: Any, stage: int) -> Update:
    """DeepSpeed ZeRO with bf16 weights and fp32 master weights and states."""
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(model.parameters()),
        config={
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
            "bf16": {"enabled": True}, "zero_optimization": {"stage": stage}, "steps_per_print": 10**9,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-6, "torch_adam": True}},
        },
    )  # fmt: skip

    def update(loss_of: Callable[[Any], torch.Tensor], micro: int) -> None:
        for index in range(micro):
            engine.set_gradient_accumulation_boundary(index == micro - 1)
            engine.backward(loss_of(engine) / micro)
        engine.step()

    return update
