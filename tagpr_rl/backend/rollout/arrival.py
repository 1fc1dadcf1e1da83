"""Whether a rollout server holds the weights that the policy sent: what arrived, and what the engine made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from tagpr_rl.backend.forward.checksum import CHECKSUM, bit_sum, has_words, read_checksum
from tagpr_rl.types import TagprError

ADAPTER = "the LoRA adapter"
Weights = Sequence[tuple[str, torch.Tensor]]


class Arrival:
    """The checksums of one hand-over, on the server's side."""

    def __init__(self) -> None:
        self.sent: int | None = None
        """The policy's checksum of all tensors; None until it has come."""
        self.received = 0
        self.expected: dict[str, int] = {}
        """Checksum that a parameter of the engine must have, by its name."""
        self._in_words: set[str] = set()
        """Parameters whose rows are those of the tensors sent, so that they are summed in words."""
        self.unknown = 0
        """Tensors that were not compared: the engine has no parameter of their name."""

    def take(self, weights: Weights) -> list[tuple[str, torch.Tensor]]:
        """The weights without the policy's checksum, which is kept; theirs is added to `received`."""
        own = [(name, tensor) for name, tensor in weights if name != CHECKSUM]
        for name, tensor in weights:
            if name == CHECKSUM:
                self.sent = read_checksum(tensor)
        sums = [bit_sum(tensor, words=has_words(tensor)) for _, tensor in own]
        self.received = _wrapped(self.received + _added(sums))
        return own

    def expect(self, weights: Weights, parameters: Mapping[str, torch.Tensor], fused: Mapping[str, str]) -> None:
        """Note what `parameters` must hold once the engine has loaded the weights, in the parameters' dtypes.

        `fused` maps the last word of a module's name to that of the module which holds it: q_proj -> qkv_proj.
        """
        for name, tensor in weights:
            place = parameter_name(name, fused)
            if place not in parameters:
                self.unknown += 1
                continue
            made = tensor.to(parameters[place].dtype)
            words = has_words(made) and made.shape[1:] == parameters[place].shape[1:]
            if words:
                self._in_words.add(place)
            value = int(bit_sum(made, words=words))
            self.expected[place] = _wrapped(self.expected.get(place, 0) + value)

    def expect_adapter(self, weights: Weights, dtype: torch.dtype, scaling: float) -> None:
        """Note what the buffers of an adapter must hold; vLLM multiplies `lora_B` by the scaling as it loads it."""
        made = ((tensor.to(dtype) * scaling) if "lora_B" in name else tensor.to(dtype) for name, tensor in weights)
        self.expected[ADAPTER] = _added([bit_sum(tensor) for tensor in made])

    def proof(self, held: Mapping[str, Iterable[torch.Tensor]]) -> dict[str, Any]:
        """What `require` reads, as plain values; `held`: the engine's tensors of each expected name."""
        facts = {"sent": self.sent, "received": self.received, "unknown": self.unknown}
        for name, expected in self.expected.items():
            words = name in self._in_words
            if (actual := _added([bit_sum(tensor, words=words) for tensor in held[name]])) != expected:
                return {**facts, "differs": name, "expected": expected, "held": actual}
        return {**facts, "compared": len(self.expected)}


def parameter_name(name: str, fused: Mapping[str, str]) -> str:
    """Name of the engine's parameter that holds a tensor of the policy: `0.q_proj.weight` -> `0.qkv_proj.weight`."""
    words = name.split(".")
    if len(words) > 1 and words[-2] in fused:
        words[-2] = fused[words[-2]]
    return ".".join(words)


def require(proof: Mapping[str, Any], step: int | None) -> None:
    """TagprError with both checksums if the server holds other weights than the policy sent at `step`."""
    if proof["sent"] != proof["received"]:
        what, numbers = "the tensors that arrived", (proof["sent"], proof["received"])
    elif "differs" in proof:
        what, numbers = str(proof["differs"]), (proof["expected"], proof["held"])
    else:
        return
    raise TagprError(
        f"step {step}: the rollout server holds other weights than the policy: {what} should have the checksum "
        f"{numbers[0]} and has {numbers[1]}. Its responses would be another policy's; go on from the last checkpoint "
        "with `tagpr resume`"
    )


def _added(sums: Sequence[torch.Tensor]) -> int:
    return int(torch.stack(list(sums)).sum()) if sums else 0


def _wrapped(value: int) -> int:
    """As int64 wraps."""
    return (value + 2**63) % 2**64 - 2**63
