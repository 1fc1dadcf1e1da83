"""The plan of every GPU recipe, on 1, 8 and 32 described devices, against a simulator that places each process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = [pytest.mark.torch]

import torch  # noqa: E402
from support.placement import SIZES, Described, Simulation, saved_bytes, tensors  # noqa: E402

from tagpr_rl.config import ChainsStage, GrpoStage, Recipe, SftStage, load_recipe  # noqa: E402
from tagpr_rl.deploy.need import need  # noqa: E402
from tagpr_rl.plan import show as planning  # noqa: E402
from tagpr_rl.plan.memory import (  # noqa: E402
    GIB,
    RESERVE_GIB,
    block_activation,
    device_of,
    engine_devices,
    micro_tokens,
    scorer_part,
)  # fmt: skip
from tagpr_rl.plan.shapes import SHAPES  # noqa: E402
from tagpr_rl.plan.stages import StageBudget, stage_budget  # noqa: E402
from tagpr_rl.types import TagprError  # noqa: E402

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
GPU = sorted(path for path in RECIPES.rglob("*.yaml") if "device: cuda" in path.read_text() or "qwen3" in path.name)
WORLDS = {1: (1, 1), 8: (1, 8), 32: (4, 8)}


def fits_the_nodes(path: Path, nodes: int, devices: int) -> bool:
    """Whether the recipe's groups divide the devices, by its own numbers."""
    own = load_recipe(path)
    engine = own.placement.rollout == "separate" or devices % own.placement.tensor_parallel == 0
    chains = own.stages["chains"]
    assert isinstance(chains, ChainsStage)
    engine &= all(devices % (block.tensor_parallel or 1) == 0 for block in chains.blocks().values())
    return engine and nodes * devices % (own.training.fsdp_size or 1) == 0


def described(recipe: Recipe, stage: SftStage | GrpoStage, budget: StageBudget) -> Described:
    device = device_of(recipe.budget)
    assert device is not None
    size = str(recipe.model.path).removeprefix("Qwen/Qwen3-")
    scorer = scorer_part(recipe, stage) if isinstance(stage, GrpoStage) else None
    logits = sum(part.bytes for part in budget.phases[0].parts if part.name == "logits")
    return Described(
        recipe, size, device.memory_gib * GIB, micro_tokens(recipe, stage), logits, scorer.bytes if scorer else 0.0
    )


@pytest.mark.parametrize("size", SIZES)
def test_a_model_s_tensors(size: str) -> None:
    import math

    shape = SHAPES[f"Qwen/Qwen3-{size}"]
    assert sum(math.prod(dims) for _, dims, _ in tensors(size)) == shape.parameters
    adapters = sum(math.prod(dims) for _, dims, trained in tensors(size, 32) if trained)
    assert adapters == shape.lora_parameters(32, "all-linear")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_what_a_block_keeps_is_what_autograd_saves(size: str, dtype: torch.dtype) -> None:
    """Attention's and the norms' statistics, a number a head or token, are left out."""
    width = 2 if dtype == torch.bfloat16 else 4
    assert block_activation(SHAPES[f"Qwen/Qwen3-{size}"], width) == pytest.approx(saved_bytes(size, dtype), rel=0.005)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("path", GPU, ids=[path.stem for path in GPU])
def test_the_plan_knows_who_sits_where_with_how_much(path: Path, world: int) -> None:
    nodes, devices = WORLDS[world]
    overrides = (f"platform.nodes={nodes}", f"platform.devices_per_node={devices}")
    if not fits_the_nodes(path, nodes, devices):
        with pytest.raises(TagprError, match="does not divide"):
            load_recipe(path, overrides)
        return
    recipe = load_recipe(path, overrides)
    problems = planning.problems(recipe)
    for name, stage in recipe.stages.items():
        if not isinstance(stage, SftStage | GrpoStage):
            continue
        budget = stage_budget(recipe, name)
        assert budget is not None
        simulated = described(recipe, stage, budget).phases(stage)
        for phase in budget.phases:
            fullest = at(simulated, phase.name)
            # Never below, and above by the rounding of shards and the order of FSDP's gathers alone.
            assert 0.998 * fullest <= phase.bytes <= 1.08 * fullest, (name, phase.name)
            device = device_of(recipe.budget)
            assert device is not None
            told = any(text.startswith(f"stages.{name}, {phase.name}: ") for text in problems)
            assert told == (phase.bytes > (device.memory_gib - RESERVE_GIB) * GIB)
        for phase in budget.host:
            host = simulated[phase.name.partition(" (")[0]].fullest_host
            assert 0.98 * host <= phase.bytes <= 1.02 * host + 1, (name, phase.name)


def at(simulated: dict[str, Simulation], phase: str) -> float:
    """Bytes of the fullest device in a phase of the plan; `generate (rollout devices)` is of the engines' alone."""
    found = simulated[phase.partition(" (")[0]]
    if "(rollout" not in phase:
        return found.fullest
    return max(sum(parts.values()) for parts in found.devices.values() if "engine" in parts)


@pytest.mark.parametrize("path", GPU, ids=[path.stem for path in GPU])
def test_a_run_asks_ray_for_the_devices_that_its_processes_sit_on(path: Path) -> None:
    recipe = load_recipe(path)
    (stage,) = [stage for name, stage in recipe.stages.items() if name == "guided"]
    assert isinstance(stage, GrpoStage)
    budget = stage_budget(recipe, "guided")
    assert budget is not None
    found = described(recipe, stage, budget)
    phases = found.phases(stage)
    spots = {*phases["train"].devices, *phases["generate"].devices}
    assert need(recipe).devices == len(spots)
    assert found.engines(Simulation()) == engine_devices(recipe) // recipe.placement.tensor_parallel
    assert [text for text in planning.problems(recipe) if "stages." in text] == []  # as shipped it fits


def test_each_place_of_prmu() -> None:
    """Nine scorers on eight devices sit two on one; on devices of their own they are beside nobody."""
    cases: dict[str, Any] = {"shared": 2, "dedicated": 0, "cpu": 0}
    for place, most in cases.items():
        words = (f"placement.prmu={place}", "placement.prmu_serving.scorers=9")
        recipe = load_recipe(RECIPES / "lamp/qwen3_8b.yaml", words)
        stage, budget = recipe.stages["guided"], stage_budget(recipe, "guided")
        assert isinstance(stage, GrpoStage) and budget is not None
        found = described(recipe, stage, budget)
        phases = found.phases(stage)
        beside = [sum(key.startswith("scorer") for key in phases["train"].devices[spot]) for spot in found.ranks]
        assert max(beside) == most
        policy = max(sum(phases["train"].devices[spot].values()) for spot in found.ranks)
        assert 0.998 * policy <= budget.phases[0].bytes <= 1.08 * policy
        train = next(phase for phase in budget.host if phase.name == "train")
        assert train.bytes == phases["train"].fullest_host
