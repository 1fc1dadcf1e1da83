"""A GRPO stage's data filter: which rows stay, by hand, and what the manifest says is carried over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from made_runs import finish, recipe
from rich.console import Console

from tagpr_rl.config import FilterBlock, GrpoStage, recipe_from_dict
from tagpr_rl.files import write_parquet
from tagpr_rl.prompts.rows import select
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.stages.context import StageContext
from tagpr_rl.stages.grpo import carried, differ, pick, score_response, training_rows
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import TagprError


def row(task: str, items: int, number: int = 0) -> dict[str, Any]:
    info = {"task": task, "user_id": f"u{number % 3}", "profile_texts": ["x"] * items, "gold": "[1]", "index": number}
    return {"prompt": [{"role": "user", "content": f"q{number}"}], "extra_info": info}


ROWS = [row("LaMP_1", 2), row("LaMP_2", 4), row("LaMP_1", 6), row("LaMP_1", 8), row("LaMP_2", 8), row("LaMP_1", 10)]


@pytest.mark.parametrize(
    "block, kept, counts",
    [
        ({}, [0, 1, 2, 3, 4, 5], {}),
        ({"tasks": ["LaMP_1"]}, [0, 2, 3, 5], {"tasks": 4}),
        ({"min_items": 4, "max_items": 8}, [1, 2, 3, 4], {"profile_items": 4}),
        ({"max_items": 0}, [], {"profile_items": 0}),
        ({"questions": 3}, [0, 2, 4], {"questions": 3}),  # 0 * 6 // 3, 1 * 6 // 3, 2 * 6 // 3
        ({"questions": 99}, [0, 1, 2, 3, 4, 5], {"questions": 6}),
        (
            {"tasks": ["LaMP_1"], "min_items": 3, "share": 0.67},
            [2, 3],
            {"tasks": 4, "profile_items": 3, "questions": 2},
        ),
    ],
)
def test_which_rows_stay(block: dict[str, Any], kept: list[int], counts: dict[str, int]) -> None:
    actual: dict[str, int] = {}
    assert select(ROWS, range(6), FilterBlock(**block), actual) == kept
    assert actual == counts


def test_mixed_keeps_questions_answered_neither_always_nor_never() -> None:
    # Two samples each: question 4 always right, 7 once, 9 never, 11 half right twice.
    scores = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.5]
    assert pick([4, 7, 9, 11], scores, 2, differ) == [7]


def test_a_malformed_response_is_worth_nothing() -> None:
    schema = default_schema()
    good = "<think><conclude>so it is</conclude></think> [1]"
    assert score_response(good, "LaMP_1", "[1]", schema) == 1.0
    assert score_response(good, "LaMP_1", "[2]", schema) == 0.0
    assert score_response("[1]", "LaMP_1", "[1]", schema) == 0.0


def context(tmp_path: Path, **keys: Any) -> tuple[StageContext, GrpoStage]:
    """The guided stage of a made run whose prompts are ROWS."""
    made = recipe(lambda raw: raw["stages"]["guided"].update(keys))
    run = RunDir(tmp_path / "r")
    for name in ("data", "model", "prompts"):
        if name == "prompts":
            write_parquet(stage_dir(made, run, name).hf.parent / "train.parquet", ROWS)
        finish(made, run, name)
    stage = made.stages["guided"]
    assert isinstance(stage, GrpoStage)
    return StageContext(made, run, "guided", Console(quiet=True), lambda: None), stage


def test_without_a_filter_verl_reads_the_prompts_stage_s_file(tmp_path: Path) -> None:
    made, stage = context(tmp_path)
    path, counts = training_rows(made, stage)
    assert path.parent.name == "030_prompts" and counts is None


def test_an_interrupted_stage_goes_on_with_the_same_rows(tmp_path: Path) -> None:
    made, stage = context(tmp_path, filter={"tasks": ["LaMP_2"]}, prompts_per_step=2, micro_batch_size=8)
    path, counts = training_rows(made, stage)
    assert path == made.dir.root / "train.parquet" and counts == {"all": 6, "tasks": 2}
    assert [row["extra_info"]["task"] for row in pq.read_table(path).to_pylist()] == ["LaMP_2"] * 2
    chosen = made.dir.root / "filter.json"
    chosen.write_text(chosen.read_text().replace("4", "5"))  # rows 1 and 4 -> 1 and 5
    path, _ = training_rows(made, stage)
    assert [len(row["extra_info"]["profile_texts"]) for row in pq.read_table(path).to_pylist()] == [4, 10]


def test_too_few_questions_are_an_error(tmp_path: Path) -> None:
    made, stage = context(tmp_path, filter={"tasks": ["LaMP_2"]})
    with pytest.raises(TagprError, match=r"guided\.filter leaves 2 questions \(all 6, tasks 2\).*prompts_per_step=32"):
        training_rows(made, stage)


@pytest.mark.parametrize(
    "keys, part",
    [
        ({"filter": {"share": 0.5, "questions": 3}}, "give one of them"),
        ({"filter": {"min_items": 3, "max_items": 2}}, "min_items=3 is above max_items=2"),
        ({"filter": {"tasks": ["LaMP_7"]}}, "stages.guided.filter.tasks: 'LaMP_7' is none of data.tasks"),
        ({"max_response_tokens": 5000}, "stages.guided.max_response_tokens: 5000 is above data.prompt.max_resp"),
        ({"max_prompt_tokens": 50_000}, "stages.guided.max_prompt_tokens: 50000 is above data.prompt.max_tokens"),
        ({"filter": {"task": ["LaMP_1"]}}, "stages.guided.filter.task: unknown key; did you mean 'tasks'?"),
        ({"stop": {"plateau": {"patienc": 3}}}, "stages.guided.stop.plateau.patienc: unknown key; did you mean"),
    ],
)
def test_a_wrong_filter_or_limit_is_refused(keys: dict[str, Any], part: str) -> None:
    with pytest.raises(TagprError) as error:
        recipe(lambda raw: raw["stages"]["guided"].update(keys))
    assert part in str(error.value)


def test_what_is_carried_over_names_every_part() -> None:
    raw = {"kind": "grpo", "init": "sft", "weights": {"beta": 0}, "seed": 7, "kl_coef": 0.1, "lr": 1e-4}
    actual = carried(GrpoStage.model_validate(raw))
    assert list(actual) == ["weights", "optimizer", "schedule", "data order", "random state", "reference"]
    assert actual["weights"].startswith("from 'sft'") and actual["reference"] == "the weights of 'sft', fixed"
    assert "seed 7" in actual["data order"] and actual["optimizer"].startswith("afresh")


def test_limits_reach_verl() -> None:
    from tagpr_rl.backend.trainer.overrides import StagePaths, grpo_overrides

    made = recipe(
        lambda raw: raw["stages"]["guided"].update(
            max_prompt_tokens=100, max_response_tokens=20, stop={"plateau": {"window": 3}, "max_seconds": 60}
        )
    )
    paths = StagePaths(*(Path("/x") for _ in range(4)))
    keys = grpo_overrides(made, "guided", paths)
    assert (keys["data.max_prompt_length"], keys["data.max_response_length"]) == (100, 20)
    assert keys["actor_rollout_ref.rollout.max_model_len"] == 120
    stop = {key: value for key, value in keys.items() if "stop" in key}
    assert stop["+trainer.stop.plateau.window"] == 3 and stop["+trainer.stop.max_seconds"] == 60
    assert "+trainer.stop.max_tokens" not in stop
    assert not [key for key in grpo_overrides(made, "explore", paths) if "stop" in key]
    assert recipe_from_dict(made.model_dump(mode="json"), source="again") == made
