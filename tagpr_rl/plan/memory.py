"""Bytes per device by part, each with its formula."""

from __future__ import annotations

from dataclasses import dataclass

from tagpr_rl.config import BudgetBlock, DeepSpeedBlock, GrpoStage, PrmuStage, Recipe, SftStage, TrainingStage
from tagpr_rl.config.placement import prmu_processes, scorer_tokens
from tagpr_rl.config.platform import checkpointing, packs
from tagpr_rl.plan.shapes import CHUNK_BYTES, CHUNK_ENTRIES, DEVICES, Device, ModelShape, loss_bytes, shape_of
from tagpr_rl.types import TagprError

GIB = 2**30
RESERVE_GIB = 6.0
"""CUDA context, NCCL buffers and fragmentation (an assumption)."""
VERL_LOGIT_BYTES = 18
"""Per token and vocabulary entry of verl's own loss, which sequence parallelism uses (docs/log.md)."""
PADDING = 2
"""Padded tokens for each token of a micro-batch that is filled by tokens and padded: sequences have half the length of
the longest one (an assumption)."""
EVALUATION_TOKENS = 8_192
"""Padded tokens of a batch when a trained PRMU is evaluated (prmu.training.train)."""
PRMU_TOKENS, PRMU_ITEM_TOKENS = 1024, 128
"""Limits of PRMU's inputs (prmu.inputs.Limits): a response row and one profile item."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a device's memory."""

    name: str
    bytes: float
    formula: str


@dataclass(frozen=True, slots=True)
class Phase:
    """What lies in a device's memory at one time."""

    name: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> float:
        """Sum of the parts."""
        return sum(part.bytes for part in self.parts)


def device_of(budget: BudgetBlock) -> Device | None:
    """The named device, or None if none is named. TagprError for a name that is not in the table."""
    if budget.device is None:
        return None
    if budget.device not in DEVICES:
        raise TagprError(
            f"budget.device={budget.device}: not in the table ({', '.join(DEVICES)}); name the nearest of them, or "
            "leave budget.device out"
        )
    return DEVICES[budget.device]


def policy_shape(recipe: Recipe) -> ModelShape | None:
    """The shape of the recipe's model (the tiny model at its largest vocabulary); None if it is not known."""
    if recipe.model.path is not None:
        return shape_of(recipe.model.path)
    tiny = recipe.model.tiny
    head = max(32, tiny.hidden // tiny.heads)  # model.tiny.MIN_HEAD_DIM
    return ModelShape(
        "the tiny model", tiny.layers, tiny.hidden, tiny.heads, tiny.heads, head, tiny.ffn, tiny.max_vocab, True
    )


def prmu_shape(recipe: Recipe, name: str) -> ModelShape | None:
    """The backbone of PRMU stage `name`."""
    stage = recipe.stages[name]
    assert isinstance(stage, PrmuStage)
    return shape_of(stage.backbone) if stage.backbone is not None else policy_shape(recipe)


def engine_devices(recipe: Recipe) -> int:
    """Devices that generate."""
    placement = recipe.placement
    if placement.rollout == "separate":
        return placement.rollout_nodes * placement.rollout_devices_per_node
    return recipe.platform.devices


def compute_bytes(recipe: Recipe) -> int:
    """Bytes of a number in the dtype that the model computes with."""
    return 2 if recipe.model.dtype == "bfloat16" else 4


def longest(recipe: Recipe) -> int:
    """The longest sequence, in tokens."""
    return recipe.data.prompt.max_tokens + recipe.data.prompt.max_response_tokens


def micro_tokens(recipe: Recipe, stage: SftStage | GrpoStage) -> int:
    """Tokens of one device's micro-batch, padding included."""
    training = recipe.training
    tokens, sequences = _micro_batch(recipe, stage)
    if sequences is not None:
        return -(-sequences * longest(recipe) // training.sequence_parallel)
    return tokens if packs(recipe.platform, training) else PADDING * tokens


def loss_tokens(recipe: Recipe, stage: SftStage | GrpoStage) -> int:
    """Tokens of one device's micro-batch that may be in the loss: its responses, or all if it is filled by tokens."""
    tokens, sequences = _micro_batch(recipe, stage)
    return tokens if sequences is None else sequences * recipe.data.prompt.max_response_tokens


def _micro_batch(recipe: Recipe, stage: SftStage | GrpoStage) -> tuple[int, int | None]:
    """(tokens that fill a micro-batch, None), or (0, its sequences)."""
    training, cpu = recipe.training, recipe.platform.device == "cpu"
    if training.max_tokens_per_device is not None:
        return training.max_tokens_per_device, None
    if isinstance(stage, GrpoStage):
        return 0, stage.micro_batch_size
    return (0, max(1, stage.batch_size // recipe.platform.devices)) if cpu else (max(8192, longest(recipe)), None)


def training_parts(recipe: Recipe, shape: ModelShape, stage: SftStage | GrpoStage) -> tuple[Part, ...]:
    """Parts of one training process: weights, gradients and Adam states, then what a micro-batch needs."""
    states = zero_states(recipe, shape, stage.zero()) if stage.strategy == "deepspeed" else fsdp_states(recipe, shape)
    return (*states, *micro_batch_parts(recipe, shape, stage))


def micro_batch_parts(recipe: Recipe, shape: ModelShape, stage: SftStage | GrpoStage) -> tuple[Part, ...]:
    """What a device's micro-batch takes at the fullest of three moments.

    At the loss the logits are there; then each block is at work, if activations are recomputed; the last gradients to
    be sharded are the embeddings'. Without recomputation every block's states are there until the end of the second.
    """
    width, tokens = compute_bytes(recipe), micro_tokens(recipe, stage)
    block, logits = block_activation(shape, width), _logits(recipe, shape, stage)
    of_block, of_embeddings = _unsharded_gradients(recipe, shape, stage)
    # A block's backward pass holds the gradients of two feed-forward vectors and of a hidden one.
    working = width * (2 * shape.ffn + shape.hidden)
    if checkpointing(recipe.platform, recipe.training):
        kept, rule = shape.layers * shape.hidden * width, "inputs of every block"
        working += block
    else:
        kept, rule = shape.layers * block, "inner states of every block"
    stored = Part("activations", tokens * kept, f"{tokens:,} tokens x {kept:,} B ({rule})")
    at_work = Part(
        "activations",
        tokens * (kept + working),
        f"{tokens:,} tokens x {kept + working:,} B ({rule}, one block at work)",
    )
    moments: tuple[tuple[Part, ...], ...] = ((stored, logits), (at_work, of_block), (of_embeddings,))
    fullest = max(moments, key=lambda parts: sum(part.bytes for part in parts))
    return tuple(part for part in fullest if part.bytes)


def _unsharded_gradients(recipe: Recipe, shape: ModelShape, stage: TrainingStage) -> tuple[Part, Part]:
    """Gradients that FSDP has not sharded yet: while it works on a block, and on the embeddings after all blocks.

    A group's gradients are in the compute dtype and, on their way to the shards, in fp32; the group before is still on
    its way: a block, or for the last one the output layer. Tied embeddings' wait for the end. An adapter's are small.
    """
    name, width, root = "gathered gradients", compute_bytes(recipe), shape.embedding
    if stage.strategy == "deepspeed" or recipe.lora is not None:
        return Part(name, 0.0, ""), Part(name, 0.0, "")
    if shape.tied:
        block, rule = (width + 8) * shape.block + width * root, f"{width + 8} B x a block + {width} B x {root:,} (tied)"
    else:
        block = width * shape.block + max(8 * shape.block, 4 * root)
        rule = f"{width} B x a block + the larger of 8 B x a block and 4 B x {root:,} of the output layer"
    end = (width + 4) * root + 4 * shape.block
    return Part(name, block, rule), Part(name, end, f"{width + 4} B x {root:,} of the embeddings + 4 B x a block")


def _logits(recipe: Recipe, shape: ModelShape, stage: SftStage | GrpoStage) -> Part:
    """Logits and their gradient of the loss's tokens, and a chunk of them at work; verl's own if a device has a part of
    each sequence."""
    if recipe.training.sequence_parallel > 1:
        tokens = micro_tokens(recipe, stage)
        rule = f"{tokens:,} tokens x {shape.vocab:,} x {VERL_LOGIT_BYTES} B (verl's loss)"
        return Part("logits", tokens * shape.vocab * VERL_LOGIT_BYTES, rule)
    tokens, each = loss_tokens(recipe, stage), 2 * compute_bytes(recipe)
    chunk = min(CHUNK_ENTRIES, tokens * shape.vocab)
    rule = f"{tokens:,} tokens in the loss x {shape.vocab:,} x {each} B + {chunk:,} x {CHUNK_BYTES} B"
    return Part("logits", loss_bytes(tokens, shape.vocab, compute_bytes(recipe)), rule)


def _gathered(recipe: Recipe, shape: ModelShape) -> Part:
    """Unsharded weights in the compute dtype: the block at work, the prefetched one, embedding and output layer."""
    width = compute_bytes(recipe)
    gathered = width * (2 * shape.block + shape.embedding * (1 if shape.tied else 2))
    return Part("gathered", gathered, f"{width} B x (2 blocks + embeddings), unsharded")


def fsdp_states(recipe: Recipe, shape: ModelShape) -> list[Part]:
    """FSDP2: fp32 weights, gradients and Adam states, all sharded."""
    lora = recipe.lora
    shards = recipe.training.fsdp_size or recipe.platform.devices
    total, share = shape.parameters, f"{shape.parameters:,} / {shards}"
    parts = [Part("weights", 4 * total / shards, f"4 B x {share}"), _gathered(recipe, shape)]
    if lora is None:
        return [
            *parts,
            Part("gradients", 4 * total / shards, f"4 B x {share}"),
            Part("optimizer", 8 * total / shards, f"8 B x {share}"),
        ]
    adapters = shape.lora_parameters(lora.rank, lora.target_modules)
    text = f"(4 weights + 4 gradients + 8 optimizer) B x {adapters:,} / {shards}"
    return [*parts, Part("lora", 16 * adapters / shards, text)]


def zero_states(recipe: Recipe, shape: ModelShape, zero: DeepSpeedBlock) -> list[Part]:
    """DeepSpeed: weights in the compute dtype, fp32 gradients, Adam states with fp32 masters beside bf16 weights.

    Stage 1 shards the optimizer, 2 gradients as well, 3 weights as well. What is offloaded is left out.
    """
    total, world = shape.parameters, recipe.platform.devices
    width = compute_bytes(recipe)
    of_weights, of_gradients = world if zero.zero_stage == 3 else 1, world if zero.zero_stage >= 2 else 1
    per_weight = zero_optimizer_bytes(recipe)
    parts = [Part("gradients", 4 * total / of_gradients, f"4 B x {total:,} / {of_gradients}")]
    if not zero.offload_params:
        parts.insert(0, Part("weights", width * total / of_weights, f"{width} B x {total:,} / {of_weights}"))
    if not zero.offload_optimizer:
        parts.append(Part("optimizer", per_weight * total / world, f"{per_weight} B x {total:,} / {world}"))
    return [*parts, _gathered(recipe, shape)] if zero.zero_stage == 3 else parts


def zero_optimizer_bytes(recipe: Recipe) -> int:
    """Bytes per weight of ZeRO's Adam: two moments, and the fp32 master of a bf16 weight."""
    return 12 if recipe.model.dtype == "bfloat16" else 8


def block_activation(shape: ModelShape, width: int) -> int:
    """Bytes per token that one block keeps for its backward pass, with an attention that keeps no weights.

    In the compute dtype: of each of the two norms its normalised input and its output, of the queries and keys the
    normalised ones, then rotated queries, keys and values repeated for every head, the attention's output, and four
    feed-forward vectors. In fp32: what the four norms (two of hidden states, of queries and of keys) take in.
    """
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return width * (4 * hidden + 5 * queries + keys + 4 * shape.ffn) + 4 * (2 * hidden + queries + keys)


def scorer_part(recipe: Recipe, stage: GrpoStage) -> Part | None:
    """One PRMU scorer: weights, the states of the padded tokens it takes at a time, and its cache."""
    if stage.prmu is None or not stage.uses_prmu:
        return None
    shape = prmu_shape(recipe, stage.prmu)
    if shape is None:
        return None
    serving, batch = recipe.placement.prmu_serving, scorer_tokens(recipe.placement)
    width = 2 if serving.dtype == "bfloat16" else 4
    per_token = 4 * _prmu_states(shape) + width * 3 * shape.ffn
    text = (
        f"{width} B x {shape.parameters:,} + {batch:,} tokens x {per_token:,} B of states + {serving.cache_mb:g} MiB "
        "of items"
    )
    cache = serving.cache_mb * (1 << 20)
    return Part("prmu", width * shape.parameters + batch * per_token + cache, text)


def _prmu_states(shape: ModelShape) -> int:
    """fp32 numbers per token outside of the blocks (prmu.model.PrmuModel.scores): every layer's states, four vectors of
    the mixes, and six of twice the size (window mean, projection, attention over the profile)."""
    return shape.hidden * (shape.layers + 1 + 16)


def prmu_phases(recipe: Recipe, shape: ModelShape, stage: PrmuStage) -> tuple[Phase, ...]:
    """PRMU's training on the policy's devices, and its evaluation, for which every device loads the whole model."""
    world, total = prmu_processes(recipe.platform, stage), shape.parameters
    pairs = stage.micro_batch_size or stage.batch_size // world
    tokens = pairs * (2 * PRMU_TOKENS + stage.max_items * PRMU_ITEM_TOKENS)
    width = 2 if stage.dtype == "bfloat16" else 4
    inner, recomputed = block_activation(shape, width), checkpointing(recipe.platform, recipe.training)
    # Kept without recomputation: every block's inner states, and each layer normalised in both mixes.
    blocks = inner if recomputed else shape.layers * inner + 2 * 4 * shape.hidden * (shape.layers + 1)
    per_token = 4 * _prmu_states(shape) + blocks
    of_weights = of_gradients = world
    if stage.strategy == "deepspeed":
        of_weights = world if stage.zero().zero_stage == 3 else 1
        of_gradients = world if stage.zero().zero_stage >= 2 else 1
    states = 4 * total / of_weights + 4 * total / of_gradients + 8 * total / world
    rule = f"(4 / {of_weights} + 4 / {of_gradients} + 8 / {world}) B x {total:,}"
    kept = Part("prmu weights", states, rule)
    gathered = 4 * (2 * shape.block + shape.embedding) if world > 1 else 0
    activations = f"{pairs} pairs = {tokens:,} tokens x {per_token:,} B"
    train = [kept, Part("prmu activations", tokens * per_token, activations)]
    if gathered:
        train.append(Part("gathered", gathered, "4 B x (2 blocks + embeddings), unsharded"))
    whole = 4 * total + EVALUATION_TOKENS * (4 * _prmu_states(shape) + width * 3 * shape.ffn)
    text = f"4 B x {total:,} + {EVALUATION_TOKENS:,} tokens of states"
    return Phase("train", tuple(train)), Phase("evaluate", (kept, Part("whole prmu", whole, text)))
