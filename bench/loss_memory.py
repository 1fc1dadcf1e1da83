"""Peak memory of a training micro-batch under emulated CUDA autocast on a CPU: verl's engine and this project's.

Run: python bench/loss_memory.py [--tokens 4096] [--vocab 16384] [--out FILE]

A tiny Qwen3 with a large vocabulary makes forward and backward passes in bfloat16 with either engine's
`forward_step`; a dispatch mode counts the bytes of all live tensors. CUDA's autocast makes fp32 of softmax,
log-softmax, exp and sum, and the CPU's does not: a function mode does it here. What a kernel allocates inside itself
is not seen. Bytes are given per padded token and vocabulary entry, with every token in the loss and with fewer.
One JSON object on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("VERL_PLATFORM", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from verl.utils import tensordict_utils as tu
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from tagpr_rl.backend.forward.loss_tokens import LossTokenEngine
from tagpr_rl.files import write_json


class LiveBytes(TorchDispatchMode):
    """Bytes of the live storages that operators made while the mode is active; `peak` is their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


class CudaAutocast(TorchFunctionMode):
    """The rules of CUDA's autocast that touch logits: these operators give fp32 from bfloat16."""

    _FP32 = frozenset({
        torch.softmax, F.softmax, torch.Tensor.softmax, torch.log_softmax, F.log_softmax, torch.Tensor.log_softmax,
        torch.sum, torch.Tensor.sum,
    })  # fmt: skip
    _CAST = frozenset({torch.exp, torch.Tensor.exp, F.cross_entropy})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        half = bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.bfloat16
        if half and func in self._FP32 and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        elif half and func in self._CAST:
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)


def micro_batch(lengths: Sequence[int], responses: Sequence[int], vocab: int, *, packed: bool = False) -> TensorDict:
    """Random sequences of `lengths` tokens, of which the last `responses` are in the loss."""
    generator = torch.Generator().manual_seed(1)

    def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.nested.nested_tensor(rows, layout=torch.jagged)

    ids = [torch.randint(1, vocab, (length,), generator=generator) for length in lengths]
    made = TensorDict(
        {
            "input_ids": jagged(ids),
            "position_ids": jagged([torch.arange(length) for length in lengths]),
            "responses": jagged([row[-size:] for row, size in zip(ids, responses, strict=True)]),
            "temperature": torch.ones(len(lengths)),
        },
        batch_size=[len(lengths)],
    )
    tu.assign_non_tensor(made, use_remove_padding=packed, pad_token_id=0, calculate_entropy=True)
    return made


def engine_of(base: type, module: torch.nn.Module) -> Any:
    """verl's engine class `base` around a module that is not sharded, computing in bfloat16."""
    engine = object.__new__(base)
    engine.module, engine._autocast_dtype = module, torch.bfloat16
    engine.pad_to_length = engine.use_ulysses_sp = False
    engine.engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)
    engine.compute_entropy_from_logits = None
    engine.get_data_parallel_group = lambda: None
    return engine


def tiny_model(vocab: int, **sizes: Any) -> torch.nn.Module:
    """A bfloat16 Qwen3 whose vocabulary outweighs the rest of it."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    small = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    }  # fmt: skip
    config = Qwen3Config(vocab_size=vocab, **{**small, **sizes})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(torch.bfloat16)


@contextmanager
def counted() -> Iterator[LiveBytes]:
    """Count live bytes under emulated CUDA autocast."""
    with LiveBytes() as live, CudaAutocast():
        yield live


def peak_bytes(base: type, model: torch.nn.Module, batch: TensorDict) -> tuple[int, float]:
    """(peak bytes of a forward and backward pass by `base`, its seconds)."""
    engine = engine_of(base, model)

    def loss(model_output: Any, **_: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        entropy = model_output["entropy"].values().sum()  # as ppo_loss: the coefficient is 0, the graph is kept
        return -model_output["log_probs"].values().sum() - 0.0 * entropy, {}

    started = time.perf_counter()
    with counted() as live:
        value, _ = engine.forward_step(batch, loss, forward_only=False)
        value.backward()
    model.zero_grad()
    return live.peak, time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both engines; print and, with --out, write one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="padded tokens of the micro-batch, in 8 sequences")
    parser.add_argument("--vocab", type=int, default=16_384)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    length = given.tokens // 8
    engines: dict[str, type] = {"verl": FSDPEngineWithLMHead, "tagpr_rl": LossTokenEngine}
    cases: dict[str, Callable[[], TensorDict]] = {
        "every token in the loss": lambda: micro_batch([length] * 8, [length - 1] * 8, given.vocab),
        "a quarter in the loss": lambda: micro_batch([length] * 8, [length // 4] * 8, given.vocab),
        "a quarter, half is padding": lambda: micro_batch(
            [length, *[3 * length // 7] * 7], [length // 4] * 8, given.vocab
        ),
    }
    rows = []
    for case, make in cases.items():
        for name, base in engines.items():
            peak, seconds = peak_bytes(base, tiny_model(given.vocab), make())
            each = peak / (8 * length * given.vocab)
            rows.append({"case": case, "engine": name, "bytes_per_entry": round(each, 2), "seconds": round(seconds, 2)})
    text = {"tokens": 8 * length, "vocab": given.vocab, "threads": torch.get_num_threads(), "rows": rows}
    print(json.dumps(text, indent=1))
    if given.out is not None:
        write_json(given.out, text)


if __name__ == "__main__":
    main()
