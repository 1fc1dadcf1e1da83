"""A simulator of placement: which process of a stage sits on which described device, and what it holds there.

It shares no formula with tagpr_rl.plan. Weights are the tensors of transformers' own models on the meta device, sharded
row by row as torch's `fully_shard` does and cut as vLLM's tensor parallelism does; what a block keeps for its backward
pass is what autograd saves. Given from outside: the tokens of a micro-batch, what the loss and PRMU's scorer take.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from tagpr_rl.config import GrpoStage, Recipe, SftStage
from tagpr_rl.config.placement import scorer_count

SIZES = {  # config.json on the hub: layers, hidden, heads, feed-forward, tied
    "0.6B": (28, 1024, 16, 3072, True), "1.7B": (28, 2048, 16, 6144, True), "8B": (36, 4096, 32, 12_288, False),
    "32B": (64, 5120, 64, 25_600, False),
}  # fmt: skip
CUT = (*("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), "embed_tokens", "lm_head")
"""What vLLM cuts among the devices of an engine."""
TOKENS = 256
"""Tokens of the sequence with which a block's saved tensors are measured."""

Spot = tuple[int, int]
"""(node, device of the node)."""
Tensors = list[tuple[str, tuple[int, ...], bool]]
"""(name, shape, trained)."""


def config_of(size: str, layers: int | None = None) -> Qwen3Config:
    depth, hidden, heads, ffn, tied = SIZES[size]
    return Qwen3Config(
        vocab_size=151_936, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers or depth,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, tie_word_embeddings=tied,
        attn_implementation="sdpa",
    )  # fmt: skip


@cache
def tensors(size: str, rank: int = 0) -> tuple[tuple[str, tuple[int, ...], bool], ...]:
    """The model's tensors, each once; with an adapter of `rank` on every linear layer, and all else frozen."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config_of(size))
        if rank:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear"))
    return tuple((name, tuple(item.shape), item.requires_grad) for name, item in model.named_parameters())


class _Attention(torch.autograd.Function):
    """Flash attention as autograd sees it: it keeps queries, keys, values and its output."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError


@cache
def saved_bytes(size: str, dtype: torch.dtype) -> float:
    """Bytes a token of what autograd saves in one block, weights apart."""
    config = config_of(size, layers=1)
    kept: dict[int, int] = {}
    original = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = lambda query, key, value, **_: _Attention.apply(  # type: ignore
        query,
        key.repeat_interleave(query.shape[1] // key.shape[1], 1),
        value.repeat_interleave(query.shape[1] // value.shape[1], 1),
    )
    try:
        with torch.device("meta"):
            block, angles = Qwen3DecoderLayer(config, 0).to(dtype), Qwen3RotaryEmbedding(config)
            states = torch.empty(1, TOKENS, config.hidden_size, dtype=dtype, requires_grad=True)
            rotation = angles(states, torch.arange(TOKENS)[None])
        own = {item.untyped_storage()._cdata for item in (*block.parameters(), *rotation)}
        storages = []

        def keep(item: torch.Tensor) -> torch.Tensor:
            storage = item.untyped_storage()
            storages.append(storage)  # a freed storage's address would be another's
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
            return item

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda item: item):
            block(states, position_embeddings=rotation)
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
    return sum(kept.values()) / TOKENS


def shard_bytes(items: Any, width: int, shards: int, index: int) -> int:
    """Bytes of the rows of member `index` of `shards`: `fully_shard` gives each ceil(rows / shards)."""
    total = 0
    for _, shape, _ in items:
        chunk = -(-shape[0] // shards)
        rows = max(0, min(chunk, shape[0] - index * chunk))
        total += width * rows * math.prod(shape[1:])
    return total


def unsharded_bytes(items: Any, width: int) -> int:
    """The most unsharded weights at a time: the root's, and two blocks, or the embedding with the first block."""
    groups: dict[str, int] = defaultdict(int)
    for name, shape, _ in items:
        place = name.split(".layers.")[1].split(".")[0] if ".layers." in name else ""
        place = place or ("embedding" if "embed_tokens" in name else "root")
        groups[place] += width * math.prod(shape)
    block = groups["0"]
    return groups["root"] + max(2 * block, block + groups["embedding"])


def unsharded_gradients(items: Any, width: int) -> tuple[int, int]:
    """(while a block works, at the end): a group's gradients are in `width` and in fp32 while they are reduced, and so
    is the group before. An output layer is a group of its own; a tied embedding is reduced last."""
    sizes: dict[str, int] = defaultdict(int)
    for name, shape, _ in items:
        place = name.split(".layers.")[1].split(".")[0] if ".layers." in name else name.split(".")[-2]
        sizes[place] += math.prod(shape)
    block, embedding, head = sizes["0"], sizes["embed_tokens"], sizes.get("lm_head", 0)
    before = max(block, head)
    held = 0 if head else width * embedding
    return width * block + max(4 * before, 8 * block) + held, (width + 4) * embedding + 4 * block


def engine_bytes(size: str, width: int, tensor: int) -> float:
    """Weights of one device of a vLLM engine of `tensor` devices: linear layers and vocabulary are cut, norms not."""
    total = 0.0
    for name, shape, _ in tensors(size):
        cut = any(f"{part}." in name for part in CUT)
        total += width * math.prod(shape) / (tensor if cut else 1)
    return total


@dataclass
class Simulation:
    """What lies where while a stage is in one phase."""

    devices: dict[Spot, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    hosts: dict[int, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def put(self, spot: Spot, what: str, size: float) -> None:
        assert what not in self.devices[spot], f"{what} twice on {spot}"
        self.devices[spot][what] = size

    def on_host(self, node: int, what: str, size: float) -> None:
        self.hosts[node][what] = self.hosts[node].get(what, 0) + size

    @property
    def fullest(self) -> float:
        return max(sum(parts.values()) for parts in self.devices.values())

    @property
    def fullest_host(self) -> float:
        return max((sum(parts.values()) for parts in self.hosts.values()), default=0.0)


@dataclass(frozen=True)
class Described:
    """What the simulator is told: the recipe, the size of its model, and sizes that other tests establish."""

    recipe: Recipe
    size: str
    memory: float
    """Bytes of a device."""
    tokens: int = 0
    """Of a device's micro-batch."""
    loss: float = 0.0
    """Bytes of logits and what the loss keeps of them."""
    scorer: float = 0.0
    """Bytes of one PRMU scorer; 0 = the stage has none."""

    @property
    def ranks(self) -> list[Spot]:
        """Where each process of the policy sits: Ray packs a placement group a node, verl numbers them node by node."""
        platform = self.recipe.platform
        return [(node, device) for node in range(platform.nodes) for device in range(platform.devices_per_node)]

    @property
    def shards(self) -> int:
        """Members of a group that shares one copy of the weights: consecutive ranks."""
        return self.recipe.training.fsdp_size or len(self.ranks)

    @property
    def weights(self) -> Any:
        return tensors(self.size, self.recipe.lora.rank if self.recipe.lora is not None else 0)

    def states(self, found: Simulation, *, offloaded: bool) -> None:
        """fp32 weights and Adam's moments of each rank; `offloaded`: those that may be are on the host."""
        training = self.recipe.training
        trained = [item for item in self.weights if item[2]]
        for rank, spot in enumerate(self.ranks):
            own = rank % self.shards
            parts = {
                "weights": (shard_bytes(self.weights, 4, self.shards, own), training.offload_params),
                "moments": (shard_bytes(trained, 8, self.shards, own), training.offload_optimizer),
            }
            for what, (size, may) in parts.items():
                if offloaded and may:
                    found.on_host(spot[0], what, size)
                else:
                    found.put(spot, what, size)

    def scorers(self, found: Simulation, extra: Spot) -> None:
        """PRMU's scorers: on the policy's devices from the last node on, on devices of their own, or on a host."""
        place = self.recipe.placement.prmu
        count = scorer_count(self.recipe.platform, self.recipe.placement) if self.scorer else 0
        nodes, each = self.recipe.platform.nodes, self.recipe.platform.devices_per_node
        for number in range(count):
            if place == "shared":
                found.put((nodes - 1 - number % nodes, number // nodes % each), f"scorer {number}", self.scorer)
            elif place == "dedicated":
                found.put((extra[0], extra[1] + number), f"scorer {number}", self.scorer)
            else:
                found.on_host(0, "scorers", self.scorer)

    def engines(self, found: Simulation) -> int:
        """vLLM on the policy's devices, or on nodes of its own; returns the number of engines."""
        placement, platform = self.recipe.placement, self.recipe.platform
        spots = self.ranks
        if placement.rollout == "separate":
            count = placement.rollout_devices_per_node
            spots = [(platform.nodes + n, d) for n in range(placement.rollout_nodes) for d in range(count)]
        engines = [spots[n : n + placement.tensor_parallel] for n in range(0, len(spots), placement.tensor_parallel)]
        for engine in engines:
            assert len({node for node, _ in engine}) == 1, "an engine stays in its node"
            for spot in engine:
                found.put(spot, "engine", platform.vllm_gpu_utilization * self.memory)
        return len(engines)

    def phases(self, stage: SftStage | GrpoStage) -> dict[str, Simulation]:
        """Phase -> what lies where. Names as the plan's."""
        width = 2 if self.recipe.model.dtype == "bfloat16" else 4
        rolls = isinstance(stage, GrpoStage)
        nodes = self.recipe.platform.nodes
        extra = (nodes + (self.recipe.placement.rollout_nodes if self.recipe.placement.rollout == "separate" else 0), 0)
        train = Simulation()
        self.states(train, offloaded=False)
        trained = [item for item in self.weights if item[2]]
        depth, hidden = SIZES[self.size][:2]
        block = saved_bytes(self.size, torch.bfloat16 if width == 2 else torch.float32)
        for rank, spot in enumerate(self.ranks):
            train.put(spot, "gradients", shard_bytes(trained, 4, self.shards, rank % self.shards))
            train.put(spot, "unsharded", unsharded_bytes(self.weights, width))
            # With recomputation: the blocks' inputs with the loss, or with what one block saves and its gradients that
            # are not sharded yet; after them the gradients of the embeddings.
            inputs = self.tokens * depth * hidden * width
            in_block, at_end = unsharded_gradients(trained, width) if self.recipe.lora is None else (0, 0)
            train.put(spot, "moment", max(inputs + self.loss, inputs + self.tokens * block + in_block, at_end))
        save = Simulation()
        save.on_host(0, "whole", self._whole())
        if rolls:
            self._sleep(train)
            self._sleep(save)
        found = {"load": self._load(), "train": train, "save": save}
        if rolls:
            self.scorers(train, extra)
            generate = Simulation()
            if self.recipe.placement.rollout == "colocated":
                self.states(generate, offloaded=True)
            self.engines(generate)
            self.scorers(generate, extra)
            found["generate"] = generate
        return found

    def _whole(self) -> int:
        return sum(4 * math.prod(shape) for _, shape, _ in tensors(self.size))

    def _load(self) -> Simulation:
        """The processes that read real weights: the first of each group, or all if the embeddings are tied."""
        found = Simulation()
        for rank, spot in enumerate(self.ranks):
            if SIZES[self.size][4] or rank % self.shards == 0:
                found.on_host(spot[0], "read", self._whole())
        return found

    def _sleep(self, found: Simulation) -> None:
        """Engines that get an adapter alone keep their base on the host while they sleep."""
        lora = self.recipe.lora
        for node, _ in self.ranks if lora is not None and not lora.merge else ():
            found.on_host(node, "asleep", engine_bytes(self.size, 2, self.recipe.placement.tensor_parallel))
