"""verl's engine on every device, with logits for the tokens of the loss alone, not for the prompt's.

verl 0.9.1 computes logits `[B, T, V]` for every position, padding included, and a log-softmax and an entropy over all
of them (fsdp/transformer_impl.py:1476-1531); the losses of SFT and GRPO read the response's. With a prompt of 2,048
tokens and a response of 768 that is 3.7 times the memory and the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from tagpr_rl.backend.forward.checksum import with_checksum
from tagpr_rl.backend.forward.logprobs import token_logprobs
from tagpr_rl.backend.forward.resharding import ReshardingCheckpointManager


# verl looks for an engine of the device and its vendor first (engine/base.py:399), and registers its own without one.
@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cuda", vendor=["nvidia", "amd"])
class LossTokenEngine(FSDPEngineWithLMHead):
    """verl's engine for a language model, with logits for the tokens of the loss.

    Log-probabilities and entropies of the loss's tokens equal verl's but for rounding; those of all others are 0. The
    entropy has no gradient: no recipe key weighs it, and verl subtracts 0 times it from the loss (losses.py:124).
    """

    def initialize(self) -> None:
        """As verl's; checkpoints of another number of processes load, too."""
        super().initialize()
        own: Any = self.checkpoint_manager  # type: ignore[has-type]
        self.checkpoint_manager = ReshardingCheckpointManager(
            model=own.model,
            optimizer=own.optimizer,
            lr_scheduler=own.lr_scheduler,
            processing_class=own.processing_class,
            checkpoint_config=self.checkpoint_config,
            trust_remote_code=own.trust_remote_code,
        )

    _positions: torch.Tensor | None = None
    """Indices `[N]` into the micro-batch's tokens whose next token is in the loss; None = verl's way."""

    def get_per_tensor_param(self, **kwargs: Any) -> Any:
        """The weights for rollout servers, whose last tensor is their checksum, and the adapter's settings."""
        weights, peft_config = super().get_per_tensor_param(**kwargs)
        return with_checksum(weights), peft_config

    def forward_step(self, micro_batch: Any, loss_function: Any, forward_only: bool) -> Any:
        """One forward pass of a micro-batch; see verl."""
        alone = not (self.use_ulysses_sp or self.pad_to_length)
        self._positions = loss_positions(micro_batch) if alone else None
        if self._positions is None:
            return super().forward_step(micro_batch, loss_function, forward_only)
        read = transformer_impl.tu.get_non_tensor_data
        packed = read(data=micro_batch, key="use_remove_padding", default=True)
        columns = hidden_indices(micro_batch["input_ids"].offsets(), self._positions, packed=packed)
        try:
            with selected_rows(self.module.get_output_embeddings(), columns):
                return super().forward_step(micro_batch, loss_function, forward_only)
        finally:
            self._positions = None

    def prepare_model_outputs(
        self, output: Any, output_args: Any, micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, Any]:
        """`log_probs`, and `entropy` if the micro-batch asks for it: nested tensors with one value per token."""
        if self._positions is None:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        labels = output_args["input_ids_rmpad_rolled"]
        offsets = micro_batch["input_ids"].offsets()
        positions = self._positions.to(labels.device)
        if "temperature_rmpad" in output_args:
            temperature = output_args["temperature_rmpad"][positions]
        else:
            temperature = output_args["temperature"][torch.bucketize(positions, offsets[1:], right=True)]
        asked = transformer_impl.tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False)
        logprobs, entropy = token_logprobs(output.logits.squeeze(0), labels[positions], temperature, entropies=asked)

        def nested(values: torch.Tensor) -> torch.Tensor:
            every = torch.zeros(labels.shape[0], dtype=values.dtype, device=values.device)
            return torch.nested.nested_tensor_from_jagged(every.index_put((positions,), values), offsets)

        outputs = {"log_probs": nested(logprobs)}
        return outputs if entropy is None else {**outputs, "entropy": nested(entropy)}


def loss_positions(micro_batch: Any) -> torch.Tensor | None:
    """Indices `[N]` into the tokens of all sequences, one after another, whose next token is in the loss.

    GRPO's micro-batches have nested `responses`, the end of each sequence; those of SFT have a `loss_mask` like
    `input_ids`. None for a micro-batch of another kind, or one that asks for more than log-probabilities.
    """
    read = transformer_impl.tu.get_non_tensor_data
    more = ("use_fused_kernels", "calculate_sum_pi_squared", "distillation_use_topk")
    if any(read(data=micro_batch, key=key, default=False) for key in more):
        return None
    ends = micro_batch["input_ids"].offsets()[1:]
    if "responses" in micro_batch and micro_batch["responses"].is_nested:
        lengths = micro_batch["responses"].offsets().diff()
        return torch.cat(
            [torch.arange(end - n - 1, end - 1) for end, n in zip(ends.tolist(), lengths.tolist(), strict=True)]
        )
    mask = micro_batch.get("loss_mask")
    if mask is None or not mask.is_nested or not torch.equal(mask.offsets(), micro_batch["input_ids"].offsets()):
        return None
    return torch.roll(mask.values(), shifts=-1).nonzero().squeeze(-1)


def hidden_indices(
    offsets: torch.Tensor, positions: torch.Tensor, *, packed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) of each of `positions` in the model's hidden states of sequences that begin at `offsets`.

    The states are `[1, sum of T]` if `packed`, else the padded batch `[B, T]`.
    """
    if packed:
        return torch.zeros_like(positions), positions
    offsets = offsets.to(positions.device)
    rows = torch.bucketize(positions, offsets[1:], right=True)
    return rows, positions - offsets[rows]


@contextmanager
def selected_rows(head: torch.nn.Module, indices: tuple[torch.Tensor, torch.Tensor]) -> Iterator[None]:
    """While active, `head` sees `[1, N, H]`, the rows of its input `[B, T, H]` at `indices`."""

    def select(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0]
        return (hidden[indices[0].to(hidden.device), indices[1].to(hidden.device)].unsqueeze(0), *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
