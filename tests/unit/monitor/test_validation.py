"""A GRPO stage's validation: the best step by hand, a stop rule on it, the hook's metrics beside a count by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tagpr_rl.backend.trainer.hooks.validation import ValidationHooks
from tagpr_rl.config import recipe_from_dict
from tagpr_rl.config.rules import PlateauBlock, StopBlock
from tagpr_rl.files import write_parquet
from tagpr_rl.monitor.stop import stop_after
from tagpr_rl.monitor.validation import SCORE, Validated, best
from tagpr_rl.types import TagprError

STAGES: dict[str, Any] = {
    "data": {"kind": "data"}, "model": {"kind": "model"}, "prompts": {"kind": "prompts"},
    "guided": {"kind": "grpo", "init": "model", "weights": {"beta": 0}, "steps": 8, "micro_batch_size": 8},
}  # fmt: skip


def test_the_best_step_is_the_first_of_equals_among_the_saved() -> None:
    rows = [{"step": 1}, {"step": 2, SCORE: 0.5}, {"step": 4, SCORE: 0.7}, {"step": 6, SCORE: 0.7}, {"step": 7}]
    assert best(rows) == Validated(4, 0.7)
    assert best(rows, {2, 6}) == Validated(6, 0.7)
    assert best(rows, {1, 7}) is None and best([]) is None


def test_a_plateau_of_the_validation_counts_validated_steps() -> None:
    rule = StopBlock(plateau=PlateauBlock(metric=SCORE, window=1, patience=2))
    scores = {2: 0.5, 4: 0.6, 6: 0.6, 8: 0.55}  # the best is step 4's; steps 6 and 8 do not beat it
    rows: list[dict[str, Any]] = [{"step": n, **({SCORE: scores[n]} if n in scores else {})} for n in range(1, 9)]
    assert all(stop_after(rows[:n], rule, 20) is None for n in range(1, 8))
    stop = stop_after(rows, rule, 20)
    assert stop is not None and stop.step == 8 and "the best was 0.6000" in stop.reason


@pytest.mark.parametrize(
    ("fraction", "stage", "message"),
    [
        (0.0, {"validation": {}}, "set data.validation_fraction"),
        (0.1, {"validation": {"every": 3, "publish": "best"}, "save_every": 2}, "must divide validation.every"),
        (0.1, {"stop": {"plateau": {"metric": SCORE}}}, "needs the stage's `validation`"),
        (1.0, {}, "validation_fraction"),
    ],
)
def test_what_does_not_go_together_is_refused(fraction: float, stage: dict[str, Any], message: str) -> None:
    stages = {**STAGES, "guided": {**STAGES["guided"], **stage}}
    with pytest.raises(TagprError, match=message):
        recipe_from_dict({"name": "v", "data": {"validation_fraction": fraction}, "stages": stages}, source="test")


def test_a_time_split_has_no_users_to_set_aside() -> None:
    with pytest.raises(TagprError, match="the same users"):
        recipe_from_dict(
            {"name": "v", "data": {"validation_fraction": 0.1, "split": "time"}, "stages": STAGES}, source="test"
        )


class Trainer(ValidationHooks):
    """What the hook reads of verl's trainer."""

    def __init__(self, folder: Path, keep_best: bool) -> None:
        kwargs = SimpleNamespace(schema_file=None, keep_best=keep_best)
        self.config = SimpleNamespace(
            data=SimpleNamespace(val_files=str(folder / "validation.parquet")),
            reward=SimpleNamespace(reward_kwargs=kwargs),
            trainer=SimpleNamespace(rollout_data_dir=str(folder)),
        )
        self.logger = SimpleNamespace(settings=SimpleNamespace(metrics_file=str(folder / "metrics.jsonl")))
        self.global_steps = 4


def test_the_hook_scores_the_responses_and_spares_the_best_checkpoint(tmp_path: Path) -> None:
    golds = {"1": "comedy", "2": "comedy", "3": "violence"}
    infos = [
        {"record_id": key, "task": "LaMP_2", "user_id": f"u{key}", "split": "validation", "gold": gold, "question": "q"}
        for key, gold in golds.items()
    ]
    write_parquet(tmp_path / "validation.parquet", [{"extra_info": info} for info in infos])
    thought = "<think><examine>a</examine></think>"
    given = {"LaMP_2/2": f"{thought}action", "LaMP_2/1": f"{thought}comedy", "LaMP_2/3": "no tags violence"}
    trainer = Trainer(tmp_path, keep_best=True)
    columns = {"key": list(given), "text": list(given.values()), "reward": [0.0] * 3}
    metrics = trainer._val_metrics_update([], [], columns, [])
    lines = [json.loads(line) for line in (tmp_path / "validation_0004.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == [1.0, 0.0, lines[2]["score"]] and lines[0]["response"].endswith(
        "comedy"
    )
    assert metrics[SCORE] == pytest.approx(sum(line["score"] for line in lines) / 3)
    assert metrics["validation/low"] <= metrics[SCORE] <= metrics["validation/high"]
    with pytest.raises(TagprError, match="LaMP_2/3"):
        trainer._val_metrics_update([], [], {name: values[:2] for name, values in columns.items()}, [])
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ({"step": 2, SCORE: 0.5}, {"step": 4, SCORE: 0.4}))
    )
    assert trainer.spared_steps() == {2} and Trainer(tmp_path, keep_best=False).spared_steps() == set()
