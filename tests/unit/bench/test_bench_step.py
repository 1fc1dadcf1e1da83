"""bench/step.py's pure parts: the derived recipe, medians, shares and bars by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tagpr_rl.config import GrpoStage, load_recipe


@pytest.fixture(scope="module")
def bench(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_step", root / "bench" / "step.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_only_the_first_grpo_stage_is_changed_and_nothing_comes_after_it(
    bench: ModuleType, root: Path, tmp_path: Path
) -> None:
    demo = load_recipe(root / "recipes" / "demo.yaml")
    actual = bench.derive(demo, 160, 4, tmp_path)
    stage = actual.stages["guided"]
    assert isinstance(stage, GrpoStage) and list(actual.stages)[-1] == "guided"
    assert (stage.prompts_per_step, stage.group_size, stage.steps, stage.log.table_every) == (160, 8, 5, 1)
    before = list(actual.stages)[:-1]
    assert before == list(demo.stages)[: len(before)]
    assert all(actual.stages[name] == demo.stages[name] for name in before)


def row(time_s: float, step: float, gen: float, driver: float, hook: float, **more: float) -> dict[str, Any]:
    return {
        "time_s": time_s, "timing_s/step": step, "phase/generation_s": gen, "driver/only_s": driver,
        "driver/hook_s": hook, "staleness/mean": 0.0, **more,
    }  # fmt: skip


def test_shares_medians_and_bars_by_hand(bench: ModuleType) -> None:
    rows = [
        row(50.0, 40.0, 20.0, 19.0, 9.0),  # engines start: left out
        row(71.0, 20.0, 15.0, 0.5, 0.1, **{"phase/advantage_s": 0.5, "timing_s/prmu_wait": 0.2}),
        row(
            102.0,
            30.0,
            25.0,
            1.0,
            0.3,
            **{"timing_s/prmu_wait": 0.4, "phase/advantage_s": 0.5, "phase/checkpoint_s": 1.0},
        ),
    ]
    actual = bench.summarise(rows)
    assert actual["steps"] == 2 and actual["step_s"] == 25.0 and actual["seconds"] == [20.0, 30.0]
    assert actual["phase_shares"] == {"generation": 0.8, "advantage": 0.02, "checkpoint": 0.02}
    assert actual["driver_only_share"] == pytest.approx(0.03) and actual["driver_only_s"] == 0.75
    assert actual["driver_strict_share"] == pytest.approx(0.07)  # 1.5 + 1 + 1 of 50
    assert actual["hook_share"] == pytest.approx(0.008) and actual["outside_s"] == 1.0  # 71-50-20, 102-71-30
    assert actual["prmu_wait_s"] == pytest.approx(0.3) and actual["prmu_wait_share"] == pytest.approx(0.012)
    assert actual["driver_and_outside_share"] == pytest.approx(3.5 / 52)
    assert bench.bars(actual) == {
        "about_20_s": True, "driver_only_at_most_5_percent": True, "hook_at_most_1_percent": True,
        "prmu_wait_at_most_2_percent": True,
    }  # fmt: skip
    slow = actual | {"step_s": 4.0, "driver_only_share": 0.051, "hook_share": 0.011, "prmu_wait_share": 0.021}
    assert not any(bench.bars(slow).values())
