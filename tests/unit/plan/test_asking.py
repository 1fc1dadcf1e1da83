"""What a teacher, its labels and an evaluation take, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagpr_rl.config import ChainsStage, EvaluateStage, Recipe, load_recipe
from tagpr_rl.config.placement import engine_count
from tagpr_rl.plan import show as planning
from tagpr_rl.plan.asking import evaluation_requests, held_out_questions, teacher_requests, train_questions
from tagpr_rl.plan.host import downloads
from tagpr_rl.plan.memory import GIB
from tagpr_rl.plan.stages import StageBudget, stage_budget
from tagpr_rl.types import TagprError

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
WEIGHTS, SMALLER = 32_762_123_264, 14_768_307_200
"""Parameters of Qwen3-32B and 14B."""


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


def budget_of(found: Recipe, stage: str) -> StageBudget:
    budget = stage_budget(found, stage)
    assert budget is not None
    return budget


def test_questions_are_the_world_s_or_lamp_s() -> None:
    lamp = recipe("lamp/qwen3_8b")  # LaMP 1, 2, 3, 4, 5, 7
    assert train_questions(lamp) == 6542 + 5073 + 20_000 + 12_500 + 14_682 + 13_437 == 72_234
    assert held_out_questions(lamp) == 1500 + 1410 + 2500 + 1500 + 1500 + 1498
    few = recipe("lamp/qwen3_8b", "data.limit=2000", "data.validation_fraction=0.1")
    assert train_questions(few) == 0.9 * 6 * 2000
    assert held_out_questions(few) == 1500 + 1410 + 2000 + 1500 + 1500 + 1498
    # 1,000 users with 8 questions of four tasks; 125 are held out
    world = recipe("world_qwen3_0.6b", "data.tasks=[LaMP_1,LaMP_3]")
    assert (train_questions(world), held_out_questions(world)) == (4000, 500)


def test_requests_of_a_teacher_and_a_labeller() -> None:
    found = recipe("lamp/qwen3_8b")
    stage = found.stages["chains"]
    assert isinstance(stage, ChainsStage)
    asked = teacher_requests(found, stage)
    # 12,000 of 72,234 questions and a twentieth of them without a profile; 6,000 pairs with another user's profile and
    # as many with none; 40,619 questions of generation tasks, in the same share, without a profile
    chains, pairs, again = 12_000 + 600, 2 * 6000, round(40_619 * 12_000 / 72_234)
    assert again == 6748 and asked["teacher"].count == chains + pairs + again == 31_348
    assert (asked["teacher"].prompt, asked["teacher"].response) == (2048, 2048)
    # two labellings of up to 15 steps, 48 tokens a step and for the frame
    assert (asked["labeller"].count, asked["labeller"].response) == (2 * (chains + pairs), 16 * 48)
    once = recipe("lamp/qwen3_8b", "stages.chains.keep.min_agreement=0", "stages.chains.keep.profile_evidence=either")
    stage = once.stages["chains"]
    assert isinstance(stage, ChainsStage)
    asked = teacher_requests(once, stage)
    assert asked["labeller"].count == chains + pairs and asked["teacher"].count == 31_348 + 12_000
    rules = recipe("lamp/qwen3_0.6b")
    stage = rules.stages["chains"]
    assert isinstance(stage, ChainsStage)
    assert teacher_requests(rules, stage) == {} and stage_budget(rules, "chains") is None


def test_memory_and_hours_of_a_teacher() -> None:
    budget = budget_of(recipe("lamp/qwen3_8b"), "chains")
    assert [phase.name for phase in budget.phases] == ["write chains", "label steps"]
    weights, cache, _ = budget.phases[0].parts
    # bf16 weights on two devices; three quarters of 79.6 GiB, less the weights and 3 GiB
    assert weights.bytes == 2 * WEIGHTS / 2
    room = 0.75 * 79.6 * GIB - 2 * WEIGHTS / 2 - 3 * GIB
    assert cache.bytes == pytest.approx(room)
    # 64 layers x 8 heads x 128 numbers, keys and values, 2 B, on two devices; prompt, instruction and reply
    per_token, length = 2 * 64 * 8 * 128 * 2, 2048 + 1024 + 2048
    fits = int(room // (length * per_token / 2))
    assert fits == 41
    # Four engines: 7,837 requests each in 192 waves. A token of a wave reads the weights and 3,072 tokens of context of
    # each sequence at .4 x 3,350 GB/s from two devices; prompts are computed at .35 x 989 TFLOPS on two.
    per_engine, waves = 31_348 // 4, 192
    assert waves == -(-per_engine // fits)
    decode = waves * 2048 * (2 * WEIGHTS + fits * 3072 * per_token) / 2 / (0.4 * 3350e9)
    forward = 2 * (WEIGHTS - 151_936 * 5120) + 4 * 64 * 64 * 128 * 1024
    prefill = per_engine * 2048 * forward / (2 * 0.35 * 989e12)
    what, seconds, rule = budget.seconds[0]
    assert what == "write chains" and seconds == pytest.approx(decode + prefill)
    assert "31,348 responses of 2,048 tokens on 4 engine(s) of 2 device(s), 41 at a time" in rule
    assert planning.stage_budgets(recipe("lamp/qwen3_8b"))["chains"].host_bytes == 8 * 4 * 151_936 * 5120


def test_a_teacher_that_does_not_fit_is_refused() -> None:
    alone = planning.problems(recipe("lamp/qwen3_8b", "stages.chains.teacher.tensor_parallel=1"))
    assert alone == [
        "stages.chains: Qwen/Qwen3-32B's weights take 61.0 GiB of vLLM's share and leave no room for one sequence of "
        "5120 tokens; raise teacher.tensor_parallel, or name a smaller model"
    ]
    card = recipe("lamp/qwen3_8b", "budget.device=RTX4090-24GB")
    assert any("stages.chains, write chains: 33.5 GiB do not fit" in text for text in planning.problems(card))
    assert any("teacher with 33.5 GiB: raise teacher.tensor_parallel" in text for text in planning.problems(card))
    with pytest.raises(TagprError, match=r"teacher\.tensor_parallel=3 does not divide platform\.devices_per_node=8"):
        recipe("lamp/qwen3_8b", "stages.chains.teacher.tensor_parallel=3")
    block = "{kind: openai, base_url: 'http://a/v1', model: m, tensor_parallel: 2}"
    with pytest.raises(TagprError, match=r"kind: openai does not use tensor_parallel"):
        recipe("demo", f"stages.chains.labeller={block}")
    unknown = recipe("lamp/qwen3_8b", "stages.chains.teacher.model=a/b", "stages.chains.labeller.model=a/b")
    assert stage_budget(unknown, "chains") is None  # its shape is not in the table


def test_each_model_is_downloaded_once() -> None:
    assert {part.name: part.bytes for part in downloads(recipe("lamp/qwen3_8b_lora"))} == {
        "Qwen/Qwen3-8B": 2 * 8_190_735_360, "Qwen/Qwen3-1.7B": 2 * 1_720_574_976, "Qwen/Qwen3-14B": 2 * SMALLER,
    }  # fmt: skip
    assert downloads(recipe("demo")) == ()


def test_engines_take_all_devices_of_the_run() -> None:
    cases = {
        ("lamp/qwen3_8b", 1): 8,
        ("lamp/qwen3_8b", 2): 4,
        ("lamp/qwen3_32b", 4): 8,
        ("lamp/qwen3_8b_separate", 2): 8,
    }
    for (name, tensor), count in cases.items():
        found = recipe(name)
        assert engine_count(found.platform, found.placement, tensor) == count
    # three devices on each of two nodes: an engine of two stays in its node
    odd = recipe("lamp/qwen3_0.6b", "platform.nodes=2", "platform.devices_per_node=3")
    assert engine_count(odd.platform, odd.placement, 2) == 2


def test_requests_and_hours_of_an_evaluation() -> None:
    found = recipe("world_qwen3_0.6b")
    stage = found.stages["eval"]
    assert isinstance(stage, EvaluateStage)
    plain, thinking = evaluation_requests(found, stage)
    # The base by three prompts, chosen on 200 questions; four trained models; two controls of 400 questions
    assert (plain.count, plain.response) == (2 * (1000 + 200) + 4 * 1000 + 2 * 400, 256)
    assert (thinking.count, thinking.response) == (1000 + 200, 4096)
    one = budget_of(found, "eval").seconds
    eight = budget_of(recipe("world_qwen3_0.6b", "platform.devices_per_node=8"), "eval").seconds
    assert [name for name, _, _ in one] == ["answer", "answer with thinking"]
    # Sequences of 1,024 + 256 + 4,096 + 16 tokens of 114,688 B in 55.6 GiB: 96 at a time. 1,200 are 13 waves on one
    # engine, and 150 on each of eight are 2.
    assert "96 at a time" in one[1][2] and one[1][1] == pytest.approx(13 / 2 * eight[1][1], rel=0.001)
