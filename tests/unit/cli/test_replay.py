"""`tagpr replay`: what it recomputes, what it finds different, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_runs import recipe as made_recipe

from tagpr_rl.backend.rollout.failures import Failure
from tagpr_rl.backend.rollout.saved import SAVED_STEP, failed_row, read_tokens, saved_rows, write_tokens
from tagpr_rl.cli import main
from tagpr_rl.cli.replay import stage_rules
from tagpr_rl.config import Recipe, dump_recipe
from tagpr_rl.files import write_json
from tagpr_rl.reward.replay import Recomputed, compare, read_lines, recompute
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.run.layout import RunDir, stage_dir, tokens_file
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import TagprError

CHAIN = (
    "<think><examine_examples>one</examine_examples><infer_preference>two</infer_preference>"
    "<apply_preference>three</apply_preference></think>"
)
SHORT = "<think><examine_examples>one</examine_examples></think>"


def recipe(**guided: Any) -> Recipe:
    def change(raw: dict[str, Any]) -> None:
        raw["stages"]["guided"] |= {"prmu": None, "weights": {"alpha": 0.3, "beta": 0, "gamma": 0.1}, **guided}

    return made_recipe(change)


def line(sample: int, response: str, total: float, advantage: float, **values: Any) -> dict[str, Any]:
    """A saved line; the rewards are the test's, by hand."""
    rewards = {"total": total, "task": 0.0, "format": 1.0, "tag": 0.0, "prmu": 0.0, "repetition": 0.0}
    rewards |= {key: values.pop(key) for key in list(values) if key in rewards}
    return {
        "step": 1, "record_id": "7", "task": "LaMP_2", "sample": sample, "response": response, "gold": "comedy",
        "advantage": advantage, "parse_status": "OK", "prmu_status": "off", "group": "g",
        **{f"reward_{key}": value for key, value in rewards.items()}, **values,
    }  # fmt: skip


def step() -> list[dict[str, Any]]:
    """Right answer, all 3 required tags: 1 + .3; wrong answer, 1 tag of 3: .1; no thought: 0."""
    mean = 1.4 / 3
    std = math.sqrt(((1.3 - mean) ** 2 + (0.1 - mean) ** 2 + mean**2) / 2)
    a, b, c = ((value - mean) / (std + 1e-6) for value in (1.3, 0.1, 0.0))
    return [
        line(0, CHAIN + "comedy", 1.3, a, task=1.0, tag=1.0),
        line(1, SHORT + "drama", 0.1, b, tag=1 / 3),
        line(2, "comedy", 0.0, c, format=0.0, parse_status="NO_THOUGHT"),
    ]


def saved(tmp_path: Path, lines: list[dict[str, Any]], made: Recipe) -> RunDir:
    run = RunDir(tmp_path / "r")
    write_json(run.resolved, dump_recipe(made))
    folder = stage_dir(made, run, "guided").rollouts
    folder.mkdir(parents=True)
    text = "".join(json.dumps(item) + "\n" for item in lines)
    (folder / "step_0001.jsonl").write_text(text, encoding="utf-8")
    return run


def replayed(lines: list[dict[str, Any]], made: Recipe) -> tuple[Rubric, list[Recomputed]]:
    rubric, rules = stage_rules(made, made.stages["guided"])  # type: ignore[arg-type]
    return rubric, recompute(rubric, rules, lines)


def differing(lines: list[dict[str, Any]], made: Recipe) -> dict[str, int]:
    rubric, again = replayed(lines, made)
    return {actual.column: actual.beyond for actual in compare(lines, again, rubric) if actual.beyond}


def test_numbers_by_hand_are_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert differing(step(), recipe()) == {}
    run = saved(tmp_path, step(), recipe())
    assert main(["replay", str(run.root), "guided"]) == 0
    assert "reward_total" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, columns",
    [
        ({"reward_tag": 0.9}, {"reward_tag"}),
        ({"advantage": 0.5}, {"advantage"}),
        ({"reward_total": 1.3 + 2e-6}, {"reward_total"}),
        ({"parse_status": "NESTED"}, {"parse_status"}),
        ({"masked": True, "why": "zero variance"}, {"masked"}),
        ({"response": CHAIN + "drama"}, {"reward_total", "reward_task", "advantage"}),
        ({"advantage": math.nan}, {"advantage"}),
    ],
)
def test_a_changed_value_is_found(change: dict[str, Any], columns: set[str]) -> None:
    lines = step()
    lines[0] |= change
    assert set(differing(lines, recipe())) == columns


def test_a_difference_is_shown_and_the_exit_code_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = step()
    lines[1]["advantage"] *= -1
    run = saved(tmp_path, lines, recipe())
    assert main(["replay", str(run.root), "guided", "--step", "1"]) == 1
    assert "LaMP_2" in capsys.readouterr().out


def test_step_credit_by_hand() -> None:
    """One faulty step (no word) among five: -1 * .3 / .4 against four zeros, centred, times step_weight."""
    faulty = CHAIN.replace("</think>", "<conclude>...</conclude></think>comedy")
    made = recipe(advantage={"credit": "step", "normalise": "none", "step_weight": 0.5})
    # coverage stays: 1 + .3 against .1, so the response's part is +-.6; tag of the faulty chain is 1 * 3/4
    low, high = 0.5 * -0.75 * 4 / 5, 0.5 * 0.75 / 5
    tags = ("examine_examples", "infer_preference", "apply_preference", "conclude")
    steps = [{"step": i, "tag": tag, "advantage": high if i < 3 else low} for i, tag in enumerate(tags)]
    one = [{"step": 0, "tag": "examine_examples", "advantage": high}]
    lines = [
        line(0, faulty, 1.225, 0.6, task=1.0, tag=0.75, step_credit=steps),
        line(1, SHORT + "drama", 0.1, -0.6, tag=1 / 3, step_credit=one),
    ]
    assert differing(lines, made) == {}
    steps[3]["advantage"] = high
    assert differing(lines, made) == {"step_credit": 1}
    del lines[0]["step_credit"]
    assert differing(lines, made) == {"step_credit": 1}


def test_updates_of_a_step_are_apart() -> None:
    """Under separate_async a step has several updates; per_component normalises over one of them."""
    made = recipe(advantage={"normalise": "per_component"})
    # Each update: task 1 0 and all else equal, so sums are +-sqrt(.5), their deviation 1: advantage +-.7071.
    lines = []
    for update in (0, 1):
        for sample, (answer, sign) in enumerate((("comedy", 1), ("drama", -1))):
            own = {"task": float(sign > 0), "tag": 1.0, "group": f"g{update}", "update": update}
            lines.append(line(sample, CHAIN + answer, 0.3 + (sign > 0), sign * math.sqrt(0.5), **own))
    assert set(differing(lines, made)) <= {"advantage"}
    _, again = replayed(lines, made)
    assert [new.credit.advantage for new in again] == pytest.approx([0.7071, -0.7071] * 2, abs=1e-4)


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["nowhere", "guided"], "no run's folder"),
        (["RUN", "sft"], "grpo stages are guided, explore"),
        (["RUN", "guided", "--step", "9"], "step 9; saved steps: 1"),
        (["RUN", "explore"], "holds no saved responses"),
    ],
)
def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str) -> None:
    run = saved(tmp_path, step(), recipe())
    assert main(["replay", *(str(run.root) if item == "RUN" else item for item in arguments)]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("text, part", [('{"step": 1', "line 2: no JSON"), ('{"step": 1}', "line 2: record_id")])
def test_a_cut_file_is_named(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "step_0001.jsonl"
    path.write_text(json.dumps(step()[0]) + "\n" + text, encoding="utf-8")
    with pytest.raises(TagprError, match=part):
        read_lines(path, Rubric(default_schema()))


def token_row(record: str, sample: int) -> dict[str, Any]:
    prompt = [1, 2, int(record)]
    own = {"prompt_ids": prompt, "response_ids": [sample, 5], "logprobs": [-0.5, -0.25 * sample]}
    return {"task": "LaMP_2", "record_id": record, "sample": sample, **own}


def test_saved_tokens_come_back(tmp_path: Path) -> None:
    rows = [token_row(record, sample) for sample in (1, 0) for record in ("8", "7")]
    path = tokens_file(tmp_path, 3)
    assert path.name == "step_0003.parquet"
    rows.append(failed_row(Failure("LaMP_2", "8", 2, "it is empty")))  # without tokens, and not its neighbour's prompt
    write_tokens(path, rows)
    actual = read_tokens(path)
    assert actual == {(row["task"], row["record_id"], row["sample"]): row for row in rows}


def prompt_row(record: str) -> dict[str, Any]:
    return {"prompt": record, "extra_info": {"task": "LaMP_2", "record_id": record, "gold": "g"}}


def test_training_rows_stand_in_the_order_of_the_saved_steps(tmp_path: Path) -> None:
    for number, records in ((1, ("9", "7")), (2, ("7", "8"))):
        write_tokens(tokens_file(tmp_path, number), [token_row(r, s) for r in records for s in (0, 1)])
    prompts = [prompt_row(record) for record in ("7", "8", "9")]
    sizes: dict[str, Any] = {"steps": 2, "prompts_per_step": 2, "group_size": 2}
    actual = saved_rows(prompts, tmp_path, **sizes)
    assert [row["prompt"] for row in actual] == ["7", "9", "7", "8"]
    assert [row["extra_info"][SAVED_STEP] for row in actual] == [1, 1, 2, 2]
    for change, part in (
        ({"steps": 3}, "no saved tokens"), ({"group_size": 4}, "4 responses to 2 prompts"),
        ({"prompts_per_step": 1}, "prompts_per_step=1"),
    ):  # fmt: skip
        with pytest.raises(TagprError, match=part):
            saved_rows(prompts, tmp_path, **{**sizes, **change})
    with pytest.raises(TagprError, match="record 9 of LaMP_2"):
        saved_rows(prompts[:2], tmp_path, **sizes)
    tokens_file(tmp_path, 1).write_bytes(b"no parquet")
    read_tokens.cache_clear()
    with pytest.raises(TagprError, match="no file of saved tokens"):
        saved_rows(prompts, tmp_path, **sizes)


@pytest.mark.parametrize(
    "change, part",
    [
        ({"advantage": {"credit": "step", "normalise": "per_component"}}, "credit: step splits"),
        ({"advantage": {"step_return": "following"}}, "leave it out: a step's tokens get"),
        ({"reward": [{"name": "tag", "weight": 1}]}, "give reward or its short form weights"),
        ({"advantage": {"credit": "step"}, "weights": {"alpha": 0, "beta": 0, "gamma": 0}}, "steps have no reward"),
        ({"advantage": {"zero_variance": "drop"}, "loss_agg": "seq-mean-token-mean"}, "needs loss_agg: token-mean"),
        ({"advantage": {"zero_variance": "drop"}, "mini_batches": 2}, "leave one of several mini_batches empty"),
        ({"loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}, "set loss_agg: seq-mean-token-mean"),
        ({"loss": "gspo", "loss_agg": "seq-mean-token-mean"}, "never clips"),
        ({"norm_advantage_by_std": True}, r"advantage\.normalise is group_std"),
        ({"rollouts_from": "sft"}, "stage 'sft' is no grpo stage"),
        ({"rollouts_from": "nowhere"}, "neither an earlier grpo stage nor a folder"),
        ({"rollouts_from": "guided"}, "neither an earlier grpo stage nor a folder"),  # itself is not earlier
    ],
)
def test_settings_that_make_no_sense_together_are_refused(change: dict[str, Any], part: str) -> None:
    with pytest.raises(TagprError, match=part):
        recipe(**change)


def test_saved_rollouts_are_inputs_of_the_stage(tmp_path: Path) -> None:
    from tagpr_rl.config import upstream
    from tagpr_rl.run.manifest import stage_inputs

    def change(raw: dict[str, Any]) -> None:
        raw["stages"]["guided"]["save_tokens"] = save
        raw["stages"]["explore"] |= {"rollouts_from": "guided", "init": "sft", "steps": 1}

    save = False
    with pytest.raises(TagprError, match="set its save_tokens: true"):
        made_recipe(change)
    save = True
    made = made_recipe(change)
    run = RunDir(tmp_path / "r")
    assert "guided" in upstream(made, "explore")
    assert stage_inputs(made, run, "explore")["rollouts_from/step_0001.parquet"] == "absent"
    write_tokens(tokens_file(stage_dir(made, run, "guided").rollouts, 1), [token_row("7", 0)])
    assert len(stage_inputs(made, run, "explore")["rollouts_from/step_0001.parquet"]) == 64
