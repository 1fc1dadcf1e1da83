"""bench/prmu.py's pure parts: derived recipes and bars, by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tagpr_rl.config import EvaluateStage, GrpoStage, PrmuStage, load_recipe
from tagpr_rl.types import TagprError


@pytest.fixture(scope="module")
def bench(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_prmu", root / "bench" / "prmu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    sys.path.insert(0, str(root / "bench"))
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_a_seed_s_recipe_has_the_baselines_and_with_rl_the_arms(bench: ModuleType, tmp_path: Path) -> None:
    demo = load_recipe(bench.DEMO)
    options = {"out": tmp_path, "seed": 3, "world_seed": 41, "held_out_users": 20}
    plain = bench.derive(demo, rl=False, **options)
    users = {name: s.user for name, s in plain.stages.items() if isinstance(s, PrmuStage)}
    assert users == {"prmu": "attention", "prmu_generic": "generic", "prmu_identity": "identity", "prmu_text": "text"}
    assert {stage.seed for stage in plain.stages.values()} == {3}
    full = bench.derive(demo, rl=True, **options)
    assert list(full.stages)[: len(plain.stages)] == list(plain.stages)  # one folder serves both
    arms = {name: s for name, s in full.stages.items() if isinstance(s, GrpoStage)}
    assert {name: (s.weights.beta > 0, s.prmu_users) for name, s in arms.items()} == {
        "guided_prmu": (True, "own"), "guided_off": (False, "own"), "guided_shuffled": (True, "shuffled")
    }  # fmt: skip
    evaluation = full.stages["eval"]
    assert isinstance(evaluation, EvaluateStage)
    assert evaluation.models == ("sft", *arms)
    with pytest.raises(TagprError, match="tuned on"):
        bench.derive(demo, rl=False, **{**options, "world_seed": demo.data.world.seed})


def test_pooling_and_paired_wins_by_hand(bench: ModuleType) -> None:
    mine = [{"a": ["u", 1.0], "b": ["v", 0.0]}, {"a": ["u", 0.0], "c": ["w", 1.0]}]
    reference = [{"a": ["u", 0.0], "b": ["v", 0.0]}, {"a": ["u", 0.0], "c": ["w", 0.0]}]
    assert bench.pooled(mine)[0] == pytest.approx(0.5)  # a (1 + 0) / 2, b 0, c 1
    assert bench.above(mine, reference)[0] == pytest.approx(0.5)  # 1, 0, 0, 1 over the four pairs of two seeds


def test_bars_by_hand(bench: ModuleType) -> None:
    def model(accuracy: float, difference: float) -> dict[str, Any]:
        return {
            "held_out": [accuracy, accuracy - 0.01, accuracy + 0.01],
            "held_out_per_seed": [accuracy] * 3,
            "prmu_above": [difference, difference - 0.05, difference + 0.05],
            "user_only_own_per_seed": [[0.9, 0.88, 0.92]] * 2 + [[0.84, 0.8, 0.9]],
            "user_only_shuffled_per_seed": [[0.5, 0.4, 0.6]] * 3,
            "gain_of_best_of_n": [0.05, 0.01, 0.09],
            "gain_of_rankings": {"prmu": 0.05},
            "by_kind": {"cross_profile": accuracy},
        }

    models = {"prmu": model(0.9, 0.0), "prmu_generic": model(0.7, 0.2), "prmu_identity": model(0.88, 0.02)}
    models["prmu_text"] = model(0.8, 0.1)
    runs = [{"held_out": {"pairs": 5, "users": 2}, "best_of_n": {"n": 8}}]
    actual = {row["bar"]: row["met"] for row in bench.bars(models, runs)}
    assert actual == {
        "three seeds or more": True,
        "pairwise accuracy of users never seen >= 0.85": True,
        "above the generic baseline, clear of the interval": True,
        "above the identity baseline, clear of the interval": False,  # -0.03 to 0.07
        "the user as text in the prompt, shown": None,
        "pairs that differ only in the user: own user >= 0.85": False,  # one seed of three
        "the same pairs: another user <= 0.55": True,
        "best of 8: gain of the task score above 0": True,
    }
