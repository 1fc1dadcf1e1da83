"""Memory, FLOPs and hours against numbers worked out by hand from the models' config.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tagpr_rl.config import BudgetBlock, GrpoStage, Recipe, SftStage, load_recipe
from tagpr_rl.plan import show as planning
from tagpr_rl.plan.host import checkpoint_bytes, disk_bytes, stage_disks
from tagpr_rl.plan.hours import generation_seconds, train_flops
from tagpr_rl.plan.memory import GIB, RESERVE_GIB, block_activation, device_of, loss_tokens, micro_tokens, policy_shape
from tagpr_rl.plan.shapes import SHAPES, Device, ModelShape, shape_of
from tagpr_rl.plan.stages import StageBudget, stage_budget
from tagpr_rl.types import TagprError

RECIPES = Path(__file__).resolve().parents[3] / "recipes" / "lamp"
EIGHT = SHAPES["Qwen/Qwen3-8B"]
SMALL = ModelShape("small", layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=16, vocab=10, tied=True)


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


def part(found: Recipe, stage: str, phase: int, name: str) -> float:
    budget = stage_budget(found, stage)
    assert budget is not None
    return next(item.bytes for item in budget.phases[phase].parts if item.name == name)


def host_part(budget: StageBudget, phase: str, name: str) -> float:
    """Bytes of the parts of a node's host phase whose name begins with `name`."""
    (found,) = [item for item in budget.host if item.name == phase]
    return sum(item.bytes for item in found.parts if item.name.startswith(name))


@pytest.mark.parametrize(
    "name, parameters",
    [
        # embeddings 151936 x 4096, twice; per block q, o 4096 x 4096, k, v 4096 x 1024, three of 4096 x 12288,
        # two norms of 4096 and two of 128: 192,946,432 x 36; one last norm
        ("8B", 2 * 151_936 * 4096 + 36 * 192_946_432 + 4096),
        # published sizes of the tied models
        ("0.6B", 596_049_920),
        ("1.7B", 1_720_574_976),
        ("32B", 32_762_123_264),
    ],
)
def test_parameters(name: str, parameters: int) -> None:
    assert SHAPES[f"Qwen/Qwen3-{name}"].parameters == parameters


def test_a_small_shape_by_hand() -> None:
    # q 8x8, k and v 8x4, o 8x8, three of 8x16 = 64 + 64 + 64 + 384 = 576; norms 16 + 8
    assert SMALL.block == 600
    assert SMALL.parameters == 2 * 600 + 8 + 80 == SMALL.multiplied
    assert SMALL.kv_bytes() == 2 * 2 * 1 * 4 * 2
    assert SMALL.forward_flops(3) == 2 * 1288 + 4 * 2 * 2 * 4 * 3
    # rank 2: q 16, k 12, v 12, o 16, gate 24, up 24, down 24 = 128 x 2, two blocks
    assert SMALL.lora_parameters(2, "all-linear") == 2 * 2 * 128
    assert SMALL.lora_parameters(2, ("q_proj", "k_proj")) == 2 * 2 * 28
    with pytest.raises(TagprError, match="'qproj' is no layer"):
        SMALL.lora_parameters(2, ("qproj",))
    # 2 bytes: 4 x 8 hidden, 5 x 8 queries' width, 4 keys, 4 x 16 feed-forward; 4 bytes: 2 x 8, 8 and 4 into the norms
    assert block_activation(SMALL, 2) == 2 * (32 + 40 + 4 + 64) + 4 * (16 + 8 + 4)


def test_shape_of_a_local_folder(tmp_path: Path) -> None:
    raw = {
        "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "intermediate_size": 16, "vocab_size": 10, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    actual = shape_of(tmp_path)
    assert actual is not None and actual.parameters == SMALL.parameters
    raw.pop("tie_word_embeddings")  # as in published files: each family has its own default
    for family, tied in (("qwen3", False), ("gemma3_text", True)):
        (tmp_path / "config.json").write_text(json.dumps(raw | {"model_type": family}))
        actual = shape_of(tmp_path)
        assert actual is not None and actual.tied == tied
    (tmp_path / "config.json").write_text(json.dumps({key: raw[key] for key in list(raw)[1:]}))
    with pytest.raises(TagprError, match="num_hidden_layers"):
        shape_of(tmp_path)
    assert shape_of("nobody/nothing") is None


def test_memory_of_8b_on_eight_devices() -> None:
    actual = recipe("qwen3_8b")
    # fp32 weights, gradients, and two Adam states of 8,190,735,360 parameters over 8 devices
    assert part(actual, "guided", 0, "weights") == 4 * 8_190_735_360 / 8
    assert part(actual, "guided", 0, "gradients") == 4 * 8_190_735_360 / 8
    assert part(actual, "guided", 0, "optimizer") == 8 * 8_190_735_360 / 8
    # 36 block inputs of 4096 in bf16, one block's inner states, and gradients of two feed-forward and a hidden vector
    working = block_activation(EIGHT, 2) + 2 * (2 * 12_288 + 4096)
    assert part(actual, "guided", 0, "activations") == 8192 * (36 * 4096 * 2 + working)
    # the last block's gradients in bf16, the output layer's in fp32 on their way (4 x 622 M is more than 8 x 193 M)
    assert part(actual, "guided", 0, "gathered gradients") == 2 * 192_946_432 + 4 * 151_936 * 4096
    # With an adapter there are none, so the loss is the fullest moment: bf16 logits and their gradient; 4 Mi of the
    # logits take 12 bytes more each
    lora = recipe("qwen3_8b_lora")
    assert part(lora, "guided", 0, "logits") == 4096 * 151_936 * 4 + 4_194_304 * 12
    assert part(lora, "guided", 0, "activations") == 4096 * 36 * 4096 * 2
    assert part(actual, "guided", 1, "engine weights") == 2 * 8_190_735_360
    assert part(actual, "guided", 1, "engine KV cache") == pytest.approx(0.4 * 79.6 * GIB - 2 * 8_190_735_360 - 3 * GIB)
    # replicated between nodes: the same share per device on 32
    assert part(recipe("qwen3_8b_4nodes"), "guided", 0, "weights") == 4 * 8_190_735_360 / 8


@pytest.mark.parametrize(
    "zero, weights, gradients, optimizer, host",
    [
        # bf16 weights 2 B, fp32 gradients 4 B, Adam with fp32 masters 12 B; stage 1, 2, 3 share one more of them
        ("{zero_stage: 1}", 2, 4, 12 / 8, 0),
        ("{zero_stage: 2}", 2, 4 / 8, 12 / 8, 0),
        ("{zero_stage: 3}", 2 / 8, 4 / 8, 12 / 8, 0),
        ("{zero_stage: 2, offload_optimizer: true}", 2, 4 / 8, None, 12),
        ("{zero_stage: 3, offload_params: true}", None, 4 / 8, 12 / 8, 2),
    ],
)
def test_memory_of_zero(
    zero: str, weights: float | None, gradients: float, optimizer: float | None, host: float
) -> None:
    clear = ("training.offload_params=false", "training.offload_optimizer=false", "training.fsdp_size=null")
    actual = recipe("qwen3_8b", *clear, "stages.sft.strategy=deepspeed", f"stages.sft.deepspeed={zero}")
    budget = stage_budget(actual, "sft")
    assert budget is not None
    parts = {item.name: item.bytes for item in budget.phases[0].parts}
    expected = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    for name, per_weight in expected.items():
        assert parts.get(name) == (None if per_weight is None else pytest.approx(per_weight * 8_190_735_360))
    assert host_part(budget, "train", "offloaded") == pytest.approx(host * 8_190_735_360)
    # DeepSpeed wants real weights in each of the eight processes, and the first one gathers an export.
    assert host_part(budget, "load", "loading") == 8 * 4 * 8_190_735_360
    assert host_part(budget, "save", "export") == 4 * 8_190_735_360
    assert ("gathered" in parts) == ("zero_stage: 3" in zero)


def test_lora_trains_its_adapters_alone() -> None:
    actual = recipe("qwen3_8b_lora")
    # q and o 2 x 8192, k and v 2 x 5120, three of 16384, rank 32, 36 blocks
    adapters = 36 * 32 * (2 * 8192 + 2 * 5120 + 3 * 16_384)
    assert adapters == 87_293_952 == EIGHT.lora_parameters(32, "all-linear")
    # fp32 adapters with gradients and two Adam states beside frozen fp32 weights
    assert part(actual, "sft", 0, "lora") == 16 * adapters
    assert part(actual, "sft", 0, "weights") == 4 * 8_190_735_360
    budget = stage_budget(actual, "sft")
    assert budget is not None and {"gradients", "optimizer"}.isdisjoint(item.name for item in budget.phases[0].parts)


def test_a_scorer_is_weights_states_and_cache_and_each_device_counts_its_own() -> None:
    block = "placement.prmu_serving"
    small = ("stages.prmu.backbone=Qwen/Qwen3-0.6B", f"{block}.dtype=float32", f"{block}.batch_tokens=1000")
    one = recipe("qwen3_8b", *small, f"{block}.cache_mb=0")
    # Qwen3-0.6B: 596,049,920 weights of 4 B; 28 layers, the embedding and 16 vectors of 1024; an MLP of 3072, thrice
    weights, states = 4 * 596_049_920, 1000 * 4 * (45 * 1024 + 3 * 3072)
    assert part(one, "guided", 1, "prmu") == weights + states
    half = recipe("qwen3_8b", small[0], f"{block}.batch_tokens=1000", f"{block}.cache_mb=0")  # in bfloat16
    assert part(half, "guided", 1, "prmu") == weights / 2 + 1000 * (4 * 45 * 1024 + 2 * 3 * 3072)
    cached = recipe("qwen3_8b", *small, f"{block}.cache_mb=256", f"{block}.scorers=9")
    assert part(cached, "guided", 1, "prmu") == weights + states + (256 << 20)
    budget = stage_budget(cached, "guided")
    assert budget is not None  # nine scorers on eight devices: one device has two
    assert [item.name for item in budget.phases[1].parts].count("prmu") == 2
    host = stage_budget(
        recipe("qwen3_8b", "placement.prmu=cpu", *small[:2], f"{block}.batch_tokens=2048", f"{block}.scorers=2"),
        "guided",
    )
    assert host is not None
    assert host_part(host, "generate", "prmu") == 2 * (weights + 2048 * states // 1000 + (512 << 20))


def test_prmu_is_sharded_and_trained_on_the_policy_s_devices() -> None:
    """Qwen3-8B on eight devices: sharded states, blocks' inputs, one block again; then the whole model on each."""
    count, tokens = EIGHT.parameters, 2 * (2 * 1024 + 16 * 128)  # two pairs of full inputs
    budget = stage_budget(recipe("qwen3_8b"), "prmu")
    assert budget is not None and [phase.name for phase in budget.phases] == ["train", "evaluate"]
    parts = {item.name: item.bytes for item in budget.phases[0].parts}
    assert parts["prmu weights"] == 16 * count / 8
    assert parts["prmu activations"] == tokens * (4 * 4096 * (36 + 1 + 16) + block_activation(EIGHT, 2))
    kept = stage_budget(recipe("qwen3_8b", "training.gradient_checkpointing=false"), "prmu")
    assert kept is not None and kept.phases[0].parts[1].bytes > 5 * parts["prmu activations"]
    assert budget.phases[1].parts[1].bytes > 4 * count
    zero = stage_budget(recipe("qwen3_8b", "stages.prmu.strategy=deepspeed"), "prmu")
    assert zero is not None and zero.phases[0].parts[0].bytes == (4 + 4 / 8 + 8 / 8) * count  # ZeRO 2
    # Twelve devices do not share 16 pairs: four train.
    twelve = stage_budget(recipe("qwen3_8b", "platform.devices_per_node=12"), "prmu")
    assert twelve is not None and twelve.phases[0].parts[0].bytes == 16 * count / 4


def test_offload_and_separate_leave_the_engine_alone() -> None:
    actual = recipe("qwen3_8b", "training.offload_params=true", "training.offload_optimizer=true")
    budget = stage_budget(actual, "guided")
    assert budget is not None
    names = {item.name for item in budget.phases[1].parts}
    assert names == {"engine weights", "engine KV cache", "engine work space", "prmu"}
    assert host_part(budget, "train", "offloaded weights") == 4 * 8_190_735_360
    assert host_part(budget, "train", "offloaded optimizer") == 8 * 8_190_735_360
    # A save puts the weights back on the devices, and gathers a copy in the first process.
    assert [phase.bytes for phase in budget.host] == [4 * EIGHT.parameters, *[12 * EIGHT.parameters] * 3]
    separate = stage_budget(recipe("qwen3_8b_separate"), "guided")
    assert separate is not None and "weights" not in {item.name for item in separate.phases[1].parts}


def test_a_reference_is_in_host_memory() -> None:
    budget = stage_budget(recipe("qwen3_8b", "stages.explore.kl_coef=0.01"), "explore")
    assert budget is not None and [phase.name for phase in budget.host] == ["load", "train", "generate", "save"]
    # On one node it lies there whole, beside the weights that are loaded and those that are exported.
    assert [phase.bytes for phase in budget.host] == [4 * EIGHT.parameters * times for times in (2, 1, 1, 2)]
    hybrid = stage_budget(recipe("qwen3_8b_4nodes", "stages.explore.kl_coef=0.01"), "explore")
    spread = stage_budget(recipe("qwen3_8b_4nodes", "stages.explore.kl_coef=0.01", "training.fsdp_size=32"), "explore")
    assert hybrid is not None and host_part(hybrid, "train", "reference") == 4 * EIGHT.parameters
    assert spread is not None and host_part(spread, "train", "reference") == EIGHT.parameters
    with_lora = stage_budget(recipe("qwen3_8b_lora", "stages.explore.kl_coef=0.01"), "explore")
    # with LoRA the reference is the policy itself; the sleeping engine's bf16 base weights lie in host memory instead
    assert with_lora is not None and with_lora.host[1].bytes == 2 * EIGHT.parameters


def test_host_memory_of_32b() -> None:
    """131 GB of fp32 weights: loaded by one process of a node, exported by the first, never kept by all."""
    whole = 4 * 32_762_123_264
    full, lora = stage_budget(recipe("qwen3_32b"), "guided"), stage_budget(recipe("qwen3_32b_lora"), "guided")
    assert full is not None and [phase.bytes for phase in full.host] == [whole, 0, 0, whole]
    # Two engines of four devices keep their bf16 weights on the host while they sleep: 2 x 65.5 GB.
    assert lora is not None and [phase.bytes for phase in lora.host] == [whole, whole, 0, 2 * whole]
    # The eight workers of a node, two engines of four, each hold the output layer in fp32 while they change weights.
    evaluate = stage_budget(recipe("qwen3_32b"), "eval")
    assert evaluate is not None and evaluate.host_bytes == 8 * 4 * 151_936 * 5120
    tied = stage_budget(recipe("qwen3_1.7b", "platform.devices_per_node=8"), "sft")
    assert tied is not None and host_part(tied, "load", "loading") == 8 * 4 * 1_720_574_976


def test_processes_of_the_cpu_lie_in_host_memory() -> None:
    found = recipe("../demo", "platform.devices_per_node=2", "placement.prmu_serving.cache_mb=0")
    budget = stage_budget(found, "sft")
    assert budget is not None and budget.host[1].bytes == 2 * budget.phases[0].bytes
    guided = stage_budget(found, "guided")
    assert guided is not None and host_part(guided, "generate", "engine KV cache") == 2 * (512 << 20)


def test_disk_of_a_checkpoint() -> None:
    count, large = EIGHT.parameters, 32_762_123_264
    whole = stage_disks(recipe("qwen3_8b"), ["guided"])["guided"]
    sizes = {item.name: item.bytes for item in whole.parts}
    # 12 B of weights and moments and 4 B of export; two are kept while a third one is written.
    assert sizes["weights"] == 4 * count and sizes["checkpoints"] == 2 * 16 * count and whole.writing == 16 * count
    # 200 steps of 128 x 8 responses: 2,816 tokens of 5 B, and a KiB
    assert sizes["rollouts"] == 200 * 1024 * (1024 + 5 * 2816)
    kept = stage_disks(
        recipe("qwen3_8b", "stages.guided.log.keep_responses=10", "stages.guided.save_tokens=true"), ["guided"]
    )
    assert kept["guided"].parts[2].bytes == 200 * 10 * (1024 + 5 * 2816 + 8 * 768)

    def checkpoint(*words: str) -> float:
        found = recipe(*words)
        stage, shape = found.stages["sft"], policy_shape(found)
        assert isinstance(stage, SftStage) and shape is not None
        return checkpoint_bytes(found, stage, shape)[0]

    # Hybrid sharding on four nodes writes the weights and moments four times: 426 GB.
    assert checkpoint("qwen3_8b_4nodes") == (4 * 12 + 4) * count == 425_918_238_720
    assert checkpoint("qwen3_32b") == 16 * large
    adapters = 64 * 32 * (2 * (5120 + 8192) + 2 * (5120 + 1024) + 3 * (5120 + 25_600))
    assert checkpoint("qwen3_32b_lora") == 8 * large + 16 * adapters
    # ZeRO's optimizer file has fp32 weights beside the moments; the weights' own file is bf16, and ZeRO 3 has none.
    zero = "stages.sft.strategy=deepspeed"
    assert checkpoint("qwen3_8b", zero) == 18 * count
    assert checkpoint("qwen3_8b", zero, "stages.sft.deepspeed={zero_stage: 3}") == 16 * count
    found = recipe("qwen3_8b")
    disks = stage_disks(found, found.stages)
    # PRMU's checkpoints go with its stage: two of weights and moments.
    assert disk_bytes(found, found.stages) == sum(disk.bytes for disk in disks.values()) + 2 * 12 * count


def test_micro_batches_in_tokens() -> None:
    actual = recipe("qwen3_8b", "training.max_tokens_per_device=null", "stages.guided.micro_batch_size=4")
    guided, sft = actual.stages["guided"], actual.stages["sft"]
    assert isinstance(guided, GrpoStage) and isinstance(sft, SftStage)
    assert (micro_tokens(actual, guided), loss_tokens(actual, guided)) == (4 * (2048 + 768), 4 * 768)
    assert (micro_tokens(actual, sft), loss_tokens(actual, sft)) == (8192, 8192)
    padded = recipe("qwen3_8b", "training.attention=sdpa")  # filled to 8,192 tokens, of which all may be in the loss
    assert (micro_tokens(padded, sft), loss_tokens(padded, sft)) == (2 * 8192, 8192)


def test_every_shipped_recipe_leaves_eight_percent_of_its_device() -> None:
    for file in sorted([*RECIPES.glob("*.yaml"), RECIPES.parent / "world_qwen3_0.6b.yaml"]):
        actual = load_recipe(file)
        device = device_of(actual.budget)
        assert device is not None, file
        for name in actual.stages:
            budget = stage_budget(actual, name)
            for phase in budget.phases if budget is not None else ():
                assert phase.bytes <= 0.92 * (device.memory_gib - RESERVE_GIB) * GIB, (file.stem, name, phase.name)


def test_the_readme_has_the_plan_s_figures_of_the_quickstart() -> None:
    line = planning.verdict(load_recipe(RECIPES.parent / "world_qwen3_0.6b.yaml"))
    memory, hours = re.search(r"at most ([\d.]+) of.*about ([\d.]+) hours", line).groups()  # type: ignore[union-attr]
    said = f"`plan` estimates {float(memory):.0f} GiB and about {hours} hours on an H100"
    assert said in (RECIPES.parents[1] / "README.md").read_text(encoding="utf-8")


def test_a_part_of_each_sequence_takes_verl_s_loss() -> None:
    words = ("training.attention=flash_attention_2", "training.sequence_parallel=2")
    assert part(recipe("qwen3_8b", *words), "guided", 0, "logits") == 8192 * 151_936 * 18


def test_flops_and_generation_by_hand() -> None:
    assert train_flops(SMALL, 10, 6, lora=False) == 3 * 10 * SMALL.forward_flops(3)
    assert train_flops(SMALL, 10, 6, lora=True) == 2 * 10 * SMALL.forward_flops(3)
    device = Device(1.0, 1e-9, 1e-9, 1e-6, "test")  # 1000 FLOP/s, 1000 B/s
    given = {"responses": 6, "engines": 2, "tensor": 1, "concurrent": 2, "prompt": 0, "response": 10}
    # 3 responses an engine, 2 at a time: 2 waves of 10 steps; a step reads 2 x 1288 + 2 x 5 x 32 B at .4 x 1000 B/s
    # (7.24 s), and computes 2 x (2576 + 64 x 5) FLOPs at .35 x 1000 FLOP/s (16.55 s), which is slower
    assert generation_seconds(SMALL, device, **given) == pytest.approx(20 * 2 * (2576 + 320) / 350)
    fast = Device(1.0, 1e-8, 1e-8, 1e-6, "test")  # ten times the FLOP/s: now the reading is slower
    assert generation_seconds(SMALL, fast, **given) == pytest.approx(20 * (2576 + 320) / 400)


def test_the_device_is_one_of_the_table() -> None:
    assert device_of(BudgetBlock()) is None
    device = device_of(BudgetBlock(device="H100-80GB"))
    assert device is not None and (device.memory_gib, device.bf16_tflops) == (79.6, 989.0)
    with pytest.raises(TagprError, match=r"budget\.device=TPU: not in the table"):
        device_of(BudgetBlock(device="TPU"))


def test_what_does_not_fit_is_named_with_its_remedy_all_at_once() -> None:
    words = ("platform.devices_per_node=2", "stages.sft.batch_size=63", "training.max_tokens_per_device=16384")
    actual = recipe("qwen3_8b", *words)
    reported = "\n".join(planning.problems(actual))
    assert "stages.sft, train: " in reported
    assert "the largest part is optimizer with 30.5 GiB" in reported  # 8 B x N / 2
    assert "training.offload_optimizer=true" in reported
    assert "batch_size = 63 is not a multiple of devices = 2" in reported
    assert "stages.guided, generate" in reported
    one = recipe("qwen3_8b", "platform.vllm_gpu_utilization=0.2")
    assert any("leave no room for one sequence of 2816 tokens" in problem for problem in planning.problems(one))
    logits = recipe("qwen3_0.6b", "training.max_tokens_per_device=131072")
    assert any("largest part is logits" in problem for problem in planning.problems(logits))


def test_host_memory_is_compared_when_it_is_given() -> None:
    offload = "training.offload_optimizer=true"
    found = planning.problems(recipe("qwen3_8b", offload, "budget.host_memory_gib=80"))
    assert any(
        "stages.guided, save on a node's host: 91.5 GiB do not fit budget.host_memory_gib=80; the largest part is "
        "offloaded optimizer with 61.0 GiB: use more nodes" in problem
        for problem in found
    )
    small = "stages.prmu.backbone=Qwen/Qwen3-0.6B"  # each of a node's processes loads it
    assert planning.problems(recipe("qwen3_8b", offload, "budget.host_memory_gib=92", small)) == []
    assert any(
        "the largest part is sleeping engine" in problem or "the largest part is export" in problem
        for problem in planning.problems(recipe("qwen3_32b_lora", "budget.host_memory_gib=200"))
    )


def test_the_embedding_must_fit_the_cpu_s_bucket() -> None:
    actual = recipe("../demo", "platform.weight_bucket_mb=1", "model.tiny.max_vocab=8192")
    assert any("weight_bucket_mb=1 does not hold" in problem for problem in planning.problems(actual))
