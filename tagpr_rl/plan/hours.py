"""FLOPs and seconds of training, generation and scoring, from the devices' peak figures and two assumptions."""

from __future__ import annotations

import math

from tagpr_rl.config import GrpoStage, PrmuStage, Recipe, stage_limits
from tagpr_rl.config.placement import prmu_processes, scorer_count
from tagpr_rl.plan.memory import PRMU_ITEM_TOKENS, PRMU_TOKENS, compute_bytes, engine_devices, longest, prmu_shape
from tagpr_rl.plan.shapes import Device, ModelShape

MFU = 0.35
"""Share of the peak that training and prefill reach (an assumption)."""
DECODE_EFFICIENCY = 0.4
"""Share of the memory bandwidth that decoding reaches (an assumption)."""
Times = tuple[tuple[str, float, str], ...]
"""(what, seconds in the whole stage, the arithmetic)."""


def train_flops(shape: ModelShape, tokens: float, length: float, *, lora: bool) -> float:
    """FLOPs of forward and backward over `tokens` in sequences of `length`: 3 forward passes; 2 with LoRA, whose
    backward computes no gradient of the frozen weights. Recomputation is not counted: it lowers MFU instead."""
    return (2 if lora else 3) * tokens * shape.forward_flops(length / 2)


def generation_seconds(
    shape: ModelShape, device: Device, *, responses: float, engines: int, tensor: int,
    concurrent: int, prompt: float, response: float, width: int = 2,
) -> float:  # fmt: skip
    """Seconds to prefill and decode `responses`: each token of a batch reads the weights and the batch's keys and
    values once (bandwidth), or computes (peak), whichever is slower; batches of `concurrent` one after another."""
    per_engine = -(-responses // engines)
    batch = min(concurrent, per_engine)
    waves = -(-per_engine // batch)
    context = prompt + response / 2
    read = (width * shape.parameters + batch * context * shape.kv_bytes(width)) / tensor
    by_memory = read / (device.bandwidth_gbps * 1e9 * DECODE_EFFICIENCY)
    peak = device.bf16_tflops * 1e12 * MFU * tensor
    by_compute = batch * shape.forward_flops(context) / peak
    prefill = per_engine * prompt * shape.forward_flops(prompt / 2) / peak
    return waves * response * max(by_memory, by_compute) + prefill


def train_time(recipe: Recipe, shape: ModelShape, tokens: float, device: Device | None, what: str = "train") -> Times:
    """Seconds to train the policy on `tokens`; () without a device."""
    if device is None:
        return ()
    world = recipe.platform.devices
    flops = train_flops(shape, tokens, longest(recipe), lora=recipe.lora is not None)
    rate = world * device.bf16_tflops * 1e12 * MFU
    rule = f"{flops:.2e} FLOPs / ({world} x {device.bf16_tflops:g} TFLOPS x MFU {MFU:g})"
    return ((what, flops / rate, rule),)


def prmu_time(recipe: Recipe, stage: PrmuStage, shape: ModelShape, device: Device | None) -> Times:
    """Seconds to train a PRMU with full inputs; () without a device."""
    if device is None:
        return ()
    tokens = stage.steps * stage.batch_size * (2 * PRMU_TOKENS + stage.max_items * PRMU_ITEM_TOKENS)
    flops = train_flops(shape, tokens, PRMU_TOKENS, lora=False)
    world, peak = prmu_processes(recipe.platform, stage), _peak(device, stage.dtype)
    rule = f"{flops:.2e} FLOPs / ({world} x {peak:g} TFLOPS {stage.dtype} x MFU {MFU:g}), full inputs"
    return (("train", flops / (world * peak * 1e12 * MFU), rule),)


def _peak(device: Device, dtype: str) -> float:
    """TFLOPS of the number format. On NVIDIA's tensor cores tf32 has half the rate of bfloat16."""
    return {"float32": device.fp32_tflops, "tf32": device.bf16_tflops / 2, "bfloat16": device.bf16_tflops}[dtype]


def grpo_time(recipe: Recipe, stage: GrpoStage, shape: ModelShape, device: Device | None, fits: int) -> Times:
    """Seconds to generate (`fits` sequences at a time on an engine), update and score; () without a device."""
    if device is None:
        return ()
    prompt, response = stage_limits(recipe, stage)
    responses = stage.prompts_per_step * stage.group_size
    tensor = recipe.placement.tensor_parallel
    engines = max(1, engine_devices(recipe) // tensor)
    generated = stage.steps * generation_seconds(
        shape, device, responses=responses, engines=engines, tensor=tensor, concurrent=fits,
        prompt=prompt, response=response,
        width=compute_bytes(recipe),
    )  # fmt: skip
    rule = (
        f"{responses} responses on {engines} engine(s), {fits} at a time, "
        f"{device.bandwidth_gbps:g} GB/s x {DECODE_EFFICIENCY:g}"
    )
    tokens = stage.steps * responses * longest(recipe)
    update = train_time(recipe, shape, tokens, device, "update")
    extra = (not stage.reuse_rollout_logprobs) + (stage.kl_coef > 0)
    factor = 2 if recipe.lora is not None else 3
    times = [("generate", generated, rule), *update]
    if extra:
        times.append(("log-probabilities", update[0][1] * extra / factor, f"{extra} more forward pass(es)"))
    scorer = prmu_shape(recipe, stage.prmu) if stage.prmu is not None and stage.uses_prmu else None
    if scorer is not None and recipe.placement.prmu != "cpu":
        read = stage.steps * responses * PRMU_TOKENS  # profile items are cached
        flops = read * scorer.forward_flops(PRMU_TOKENS / 2)
        used = scorer_count(recipe.platform, recipe.placement)
        if recipe.placement.prmu == "dedicated":
            used = max(1, math.ceil(used * recipe.placement.prmu_devices))
        else:
            used = min(used, recipe.platform.devices)
        trained = recipe.stages[str(stage.prmu)]
        assert isinstance(trained, PrmuStage)
        dtype = recipe.placement.prmu_serving.dtype or trained.dtype
        peak = _peak(device, dtype)
        text = f"{flops:.2e} FLOPs / ({used} x {peak:g} TFLOPS {dtype} x MFU {MFU:g})"
        times.append(("score", flops / (used * peak * 1e12 * MFU), text))
    return tuple(times)
