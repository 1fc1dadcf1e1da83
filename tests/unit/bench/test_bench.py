"""The benchmarks' pure parts: derived recipes, pooling, bars by hand, timing rows. Nothing is trained here."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tagpr_rl.config import EvaluateStage, GrpoStage, Recipe, load_recipe
from tagpr_rl.types import TagprError


def load(root: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", root / "bench" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    path = list(sys.path)
    sys.path.insert(0, str(root / "bench"))
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def quality(root: Path) -> ModuleType:
    return load(root, "demo_quality")


@pytest.fixture(scope="module")
def trl(root: Path) -> ModuleType:
    return load(root, "trl")


@pytest.fixture(scope="module")
def demo(root: Path) -> Recipe:
    return load_recipe(root / "recipes" / "demo.yaml")


def derived(quality: ModuleType, demo: Recipe, **changes: Any) -> Recipe:
    options: dict[str, Any] = {
        "out": Path("out"), "sft_seed": 3, "rl_seeds": (5, 7), "world_seed": 11, "held_out_users": 250,
    }  # fmt: skip
    recipe: Recipe = quality.derive(demo, **{**options, **changes})
    return recipe


class TestDerive:
    def test_one_branch_per_rl_seed_after_one_sft(self, quality: ModuleType, demo: Recipe) -> None:
        stages = derived(quality, demo).stages
        grpo = {name: (s.seed, s.init) for name, s in stages.items() if isinstance(s, GrpoStage)}
        assert grpo == {
            "guided_r5": (5, "sft"),
            "explore_r5": (5, "guided_r5"),
            "guided_r7": (7, "sft"),
            "explore_r7": (7, "guided_r7"),
        }
        before = [s.seed for s in stages.values() if not isinstance(s, GrpoStage | EvaluateStage)]
        assert set(before) == {3} and len(before) >= 6

    def test_stage_settings_are_the_demo_s(self, quality: ModuleType, demo: Recipe) -> None:
        stages = derived(quality, demo).stages
        for name in ("guided", "explore"):
            own, reference = stages[f"{name}_r7"].model_dump(), demo.stages[name].model_dump()
            assert {k for k in own if own[k] != reference[k]} <= {"seed", "init"}

    def test_every_question_is_asked_once_at_the_end(self, quality: ModuleType, root: Path) -> None:
        looks = load_recipe(
            root / "recipes" / "demo.yaml", ("stages.look={kind: evaluate, models: [sft], questions: 40}",)
        )
        actual = derived(quality, looks)
        evaluations = {name: s for name, s in actual.stages.items() if isinstance(s, EvaluateStage)}
        assert list(evaluations) == ["eval"]
        last = evaluations["eval"]
        assert last.models == ("base", "sft", "guided_r5", "explore_r5", "guided_r7", "explore_r7")
        assert (last.controls, last.questions, last.control_questions) == (("shuffled", "empty"), None, None)
        assert actual.data.world.held_out_users * actual.data.world.questions_per_user == 2000
        assert (actual.data.world.seed, actual.model.tiny.seed, actual.name) == (11, 3, "sft3")

    def test_the_tuning_world_is_refused(self, quality: ModuleType, demo: Recipe) -> None:
        with pytest.raises(TagprError, match="tuned on"):
            derived(quality, demo, world_seed=demo.data.world.seed)

    def test_files_are_refused(self, quality: ModuleType, root: Path) -> None:
        files = load_recipe(root / "recipes" / "demo.yaml", ("data.lamp_dir=somewhere",))
        with pytest.raises(TagprError, match="embedded world"):
            derived(quality, files)


def seed_run(quality: ModuleType, sft_seed: int, lift: float) -> Any:
    """Two tasks of two questions by four users. `lift` is what RL adds in this run; RL seed 2 adds 0.2 more."""
    tasks = {"a": "LaMP_1", "b": "LaMP_1", "c": "LaMP_3", "d": "LaMP_3"}
    flat = {"base": 0.1, "sft": 0.3, "guided_r1": 0.3 + lift, "explore_r1": 0.4 + lift}
    flat |= {"guided_r2": 0.5 + lift, "explore_r2": 0.6 + lift, "shuffled": 0.18, "empty": 0.3}
    return quality.SeedRun(
        sft_seed=sft_seed,
        rl_seeds=(1, 2),
        scores={label: dict.fromkeys(tasks, value) for label, value in flat.items()},
        users={key: f"u{key}" for key in tasks},
        tasks=tasks,
        bounds={
            "blind": {"LaMP_1": 0.1, "LaMP_3": 0.3, "mean": 0.2},
            "oracle": {"LaMP_1": 1.0, "LaMP_3": 1.0, "mean": 1.0},
        },
        seconds={"data": 1.0, "eval": 2.0},
    )


PROTOCOL = {"sft_seeds": [1, 2], "rl_seeds": [1, 2], "world_seed": 11, "tuning_world_seed": 1, "overrides": []}


class TestQuality:
    def test_pooled_by_hand(self, quality: ModuleType) -> None:
        facts = quality.quality([seed_run(quality, 1, 0.0), seed_run(quality, 2, 0.2)], PROTOCOL, {})
        means = {role: values[0] for role, values in facts["pooled"]["means"].items()}
        # guided: mean of .3, .5, .5, .7; final: .1 more
        expected = {"base": 0.1, "sft": 0.3, "guided": 0.5, "final": 0.6, "shuffled": 0.18, "empty": 0.3}
        assert means == pytest.approx(expected)
        # The same score everywhere: no spread over users, also in final - blind within each task.
        assert facts["pooled"]["differences"]["final-sft"] == pytest.approx([0.3, 0.3, 0.3])
        assert facts["pooled"]["differences"]["final-blind"][0] == pytest.approx(0.4)
        assert facts["seconds"]["1"]["all"] == 3.0

    def test_every_run_s_difference(self, quality: ModuleType) -> None:
        actual = quality.spread([seed_run(quality, 1, 0.0), seed_run(quality, 2, 0.2)])
        rows = [(row["sft_seed"], row["rl_seed"]) for row in actual["final-sft"]["runs"]]
        assert rows == [(1, 1), (1, 2), (2, 1), (2, 2)]
        values = [row["difference"] for row in actual["guided-sft"]["runs"]]
        assert values == pytest.approx([0.0, 0.2, 0.2, 0.4])
        assert actual["guided-sft"]["mean"] == pytest.approx(0.2)
        assert actual["guided-sft"]["sd"] == pytest.approx((0.08 / 3) ** 0.5)
        assert [row["rl_seed"] for row in actual["shuffled-blind"]["runs"]] == [None, None]

    def test_bars(self, quality: ModuleType) -> None:
        facts = quality.quality([seed_run(quality, 1, 0.0), seed_run(quality, 2, 0.2)], PROTOCOL, {})
        met = [row["met"] for row in facts["bars"]]
        # too few seeds and questions; order; final-SFT; two shown; above blind; shuffled -.02; empty +.10
        assert met == [False, True, True, None, None, True, True, False]
        assert facts["bars"][4]["figures"].startswith("adds: +0.100 ")

    def test_a_loss_is_not_met(self, quality: ModuleType) -> None:
        facts = quality.quality([seed_run(quality, 1, -0.4)], {**PROTOCOL, "sft_seeds": [1]}, {})
        by_name = {row["bar"]: row for row in facts["bars"]}
        assert by_name["base < SFT < final"]["met"] is False
        assert by_name["final - SFT clear of zero"]["met"] is False
        assert facts["per_run"]["sft-base"]["sd"] is None

    def test_runs_of_different_questions_are_refused(self, quality: ModuleType) -> None:
        one, other = seed_run(quality, 1, 0.0), seed_run(quality, 2, 0.0)
        other.scores["sft"]["e"] = 1.0
        with pytest.raises(TagprError, match="not in every run"):
            quality.quality([one, other], PROTOCOL, {})

    @pytest.mark.parametrize(
        "interval, word", [([1, 0.1, 2], "adds"), ([-1, -2, -0.1], "takes away"), ([0.1, -0.1, 0.3], "no clear effect")]
    )
    def test_effect(self, quality: ModuleType, interval: list[float], word: str) -> None:
        assert quality.effect(interval) == word


class TestTrl:
    def test_sizes(self, trl: ModuleType) -> None:
        assert trl.parse_size("32x8x256") == trl.Size(32, 8, 256)
        for text in ("32x8", "32x8x0", "ax8x1"):
            with pytest.raises(argparse.ArgumentTypeError, match="32x8x256"):
                trl.parse_size(text)

    def test_recipe_of_a_size(self, trl: ModuleType, demo: Recipe) -> None:
        recipe = trl.sized(demo, trl.Size(8, 4, 64), 7, Path("out"))
        stage = recipe.stages["guided"]
        assert list(recipe.stages) == ["data", "model", "prompts", "guided"]
        assert (stage.init, stage.prmu, stage.weights.beta, stage.steps) == ("model", None, 0.0, 7)
        assert (stage.prompts_per_step, stage.group_size, stage.micro_batch_size) == (8, 4, 32)
        assert recipe.data.prompt.max_response_tokens == 64

    def test_trl_is_told_the_same_values_and_prompts(self, trl: ModuleType, demo: Recipe) -> None:
        size = trl.Size(2, 4, 64)
        recipe = trl.sized(demo, size, 2, Path("out"))
        rows = [
            {"prompt": [{"role": "user", "content": str(i)}], "extra_info": {"task": "LaMP_3", "gold": str(i)}}
            for i in range(5)
        ]
        job = trl.trl_job(recipe, size, 2, Path("m"), rows)
        assert [row["gold"] for row in job["rows"]] == ["0", "1", "2", "3"]
        assert (job["prompts"], job["group"], job["tokens"], job["micro_batch"]) == (2, 4, 64, 8)
        assert job["lr"] == demo.stages["guided"].lr
        with pytest.raises(TagprError, match="6 prompts, the world has 5"):
            trl.trl_job(recipe, size, 3, Path("m"), rows)

    def test_rows_of_verl(self, trl: ModuleType) -> None:
        line = {
            "step": 1, "time_s": 3.0, "timing_s/step": 2.0, "timing_s/gen": 1.5, "response_length/mean": 64.0,
            "reward/total/mean": 0.1, "actor/entropy_loss": 5.0, "actor/grad_norm": 0.4,
        }  # fmt: skip
        rows = trl.verl_rows([line, {**line, "step": 2, "time_s": 5.5}])
        assert [row["wall"] for row in rows] == [3.0, 2.5]
        assert rows[0]["gen"] == 1.5 and "adv" not in rows[0]

    def test_medians_leave_the_warm_up_out(self, trl: ModuleType) -> None:
        size = trl.Size(2, 4, 64)
        rows = [
            {"step": i, "seconds": s, "wall": 2 * s, "tokens": 64.0} for i, s in enumerate((90.0, 80.0, 1.0, 3.0, 2.0))
        ]
        actual = trl.summarise(rows, 2, size)
        assert (actual["median"]["seconds"], actual["median"]["wall"], actual["steps"]) == (2.0, 4.0, 3)
        other = {"median": {"seconds": 4.0, "wall": 2.0}}
        assert trl.ratios(actual, other) == {
            "time": {"seconds": 0.5, "wall": 2.0},
            "speed": {"seconds": 2.0, "wall": 0.5},
        }
        rows[3]["tokens"] = 60.0
        with pytest.raises(TagprError, match=r"60\.0 tokens"):
            trl.summarise(rows, 2, size)


@pytest.fixture(scope="module")
def lamp(root: Path) -> ModuleType:
    return load(root, "lamp")


def test_lamp_metrics_equal_scikit_learns(lamp: ModuleType) -> None:
    pytest.importorskip("sklearn")
    assert lamp.bench_metrics()["largest_difference_to_scikit_learn"] <= 1e-12


@pytest.mark.slow
def test_lamp_rankings_and_rouge_equal_their_libraries(lamp: ModuleType) -> None:
    assert lamp.bench_bm25(quick=True)["rankings_that_differ"] == 0
    assert lamp.bench_rouge(quick=True)["largest_difference"] <= 1e-12


def test_lamp_bars_by_hand(lamp: ModuleType) -> None:
    facts: dict[str, Any] = {
        "bm25": {"rankings_that_differ": 1, "ratio": 49.0},
        "rouge": {"largest_difference": 0.0, "ratio": 15.0},
        "stream": {"stream": {"peak_mib": 1025.0}},
    }
    assert lamp.misses(facts) == [
        "missed: bm25: rankings that differ",
        "missed: bm25: ratio below 50",
        "missed: stream: over 1 GiB",
    ]
