"""The trace viewer's data: what is sampled, what a response holds, and that no text can leave its element."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_report import GOOD, jsonl, make_recipe, make_run

from tagpr_rl.report.page import traces as module
from tagpr_rl.report.page.embed import json_for_page, script, script_source
from tagpr_rl.report.page.traces import ANSWER, MARK, RAW, evenly, quotas, split_prompt, viewer_data
from tagpr_rl.run.layout import RunDir
from tagpr_rl.tags.schema import default_schema

SCHEMA = default_schema()
HOSTILE = ["</script><script>alert(1)</script>", "<!--", "<!-- <script>", "]]>", "&lt;", "\u2028", "</SCRIPT >", "\x00"]


def rollout(step: int, record: int, sample: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "record_id": str(record), "task": "LaMP_3", "user_id": "u", "sample": sample, "prompt": "p",
        "gold": "4", "response": GOOD, "advantage": 0.5, "reward_total": 1.2, "reward_task": 1.0, "reward_format": 1.0,
        "reward_tag": 0.5, "reward_prmu": 0.5, "reward_repetition": -0.25, "prmu_status": "scored",
    } | more  # fmt: skip


def guided(run: RunDir) -> Path:
    return run.stage(7, "guided").rollouts


def test_files_share_the_room_and_small_ones_leave_theirs_to_others() -> None:
    assert quotas([10, 10, 10], 100) == [10, 10, 10]
    assert quotas([100, 100, 100, 100], 40) == [10, 10, 10, 10]
    assert quotas([100, 2, 100], 42) == [20, 2, 20]
    assert quotas([5, 5, 5, 5, 5], 100, most_files=3) == [5, 0, 5, 0, 5]  # the first and the last are among them
    assert quotas([], 5) == []
    assert evenly(5, 1) == [0] and evenly(3, 9) == [0, 1, 2] and evenly(101, 3) == [0, 50, 100]


def test_whole_groups_are_taken_evenly_over_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path, evaluated=False)
    for step in range(1, 11):
        rows = [rollout(step, record, sample) for record in range(5) for sample in range(4)]
        jsonl(guided(run) / f"step_{step:04d}.jsonl", rows)
    data = viewer_data(run, make_recipe(), SCHEMA, most=80)
    assert data["shown"] == {"rollouts": [80, 200], "evaluated": [0, 0]}
    assert Counter(step for _, step, _ in data["groups"]) == dict.fromkeys(range(1, 11), 2)
    assert set(Counter(trace["g"] for trace in data["traces"]).values()) == {4}
    assert viewer_data(run, make_recipe(), SCHEMA, most=80) == data  # a hash chooses, not chance
    # 70 is 7 a step: one whole group of 4, and what is left over becomes groups of later steps.
    assert viewer_data(run, make_recipe(), SCHEMA, most=70)["shown"]["rollouts"] == [68, 200]


def test_the_page_stays_small_whatever_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, evaluated=False)
    for step in range(1, 21):
        rows = [rollout(step, record, s, response="<" * 500) for record in range(5) for s in range(2)]
        jsonl(guided(run) / f"step_{step:04d}.jsonl", rows)
    monkeypatch.setattr(module, "MOST_BYTES", 300_000)  # "<" takes six characters in the page
    data = viewer_data(run, make_recipe(), SCHEMA)
    assert len(json_for_page(data).encode()) <= 300_000
    shown, of = data["shown"]["rollouts"]
    assert of == 200 and 40 <= shown < 100


def test_held_out_questions_have_each_models_response(tmp_path: Path) -> None:
    data = viewer_data(make_run(tmp_path), make_recipe(), SCHEMA)
    assert data["stages"] == ["guided", "held-out"]
    held = [group for group, (stage, *_) in enumerate(data["groups"]) if data["stages"][stage] == "held-out"]
    for group in held:
        assert [trace["n"] for trace in data["traces"] if trace["g"] == group] == ["base", "sft", "explore"]
    record = next(g for g in held if data["records"][data["groups"][g][2]][1] == "2")
    base, sft, _ = (trace for trace in data["traces"] if trace["g"] == record)
    assert base["s"] == "DIRECT" and base["p"][0][0] == ANSWER  # asked for the answer alone: no verdict on a thought
    assert sft["s"] == "NO_THOUGHT" and [kind for kind, _ in sft["p"]] == [MARK, RAW] and sft["score"] == 0
    assert data["records"][data["groups"][record][2]] == ["LaMP_3", "2", "u2", "gold-2"]


def test_a_rollout_keeps_its_breakdown(tmp_path: Path) -> None:
    run = make_run(tmp_path, evaluated=False)
    rows = [
        rollout(1, 0, 0),
        rollout(
            1, 0, 1, weights={"alpha": 0.5, "beta": 0.25, "gamma": 0}, tag_parts={"coverage": 0.5, "sound": 1.0},
            step_credit=[{"step": 0, "tag": "examine_examples", "advantage": 0.1}, {"step": 2, "advantage": -0.2}],
        ),
        rollout(1, 0, 2, masked=True, why="no PRMU score", prmu_status="masked", reward_total=None, advantage=0.0),
    ]  # fmt: skip
    for path in guided(run).iterdir():
        path.unlink()
    jsonl(guided(run) / "step_0001.jsonl", rows)
    plain, credited, masked = viewer_data(run, make_recipe(), SCHEMA)["traces"]
    assert plain["r"] == [1.2, 1.0, 1.0, 0.5, 0.5, -0.25] and plain["a"] == 0.5
    assert plain["w"] == [1.0, 0.2, 0.2, 0.1]  # the recipe's, where the line has none
    assert [SCHEMA.names[kind] for kind, _ in plain["p"][:3]] == [
        "examine_examples", "infer_preference", "apply_preference",
    ]  # fmt: skip
    assert plain["p"][0][1] == "the user gave 4 for strong" and plain["p"][3] == [ANSWER, "4"]
    assert credited["w"] == [1.0, 0.5, 0.25, 0] and credited["c"] == [0.1, None, -0.2]
    assert credited["tp"] == {"coverage": 0.5, "sound": 1.0}
    assert masked["masked"] == "no PRMU score" and masked["prmu"] == "masked" and masked["r"][0] is None


def test_a_prompt_is_cut_into_instruction_profile_and_question() -> None:
    prompt = 'Do.\nThe user\'s history, most relevant first:\n"a"\n"b"\nThe question:\nWhich?'
    assert split_prompt(prompt) == ("Do.", '"a"\n"b"', "Which?")
    empty = "Do.\nThe user's history is empty.\nThe question:\nWhich?"
    assert split_prompt(empty) == ("Do.", "The user's history is empty.", "Which?")
    assert split_prompt("another style") == ("", "", "another style")
    assert split_prompt(f"user\n{prompt}\nassistant\n<think>\n") == split_prompt(prompt)


class _Scripts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_data(self, data: str) -> None:
        self.data += data


@given(st.lists(st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]))))
def test_json_in_a_page_parses_back_and_ends_nothing(texts: list[str]) -> None:
    text = json_for_page(texts)
    assert json.loads(text) == texts
    assert not set("<>&\u2028\u2029") & set(text)
    parser = _Scripts()
    parser.feed(f'<script type="application/json">{text}</script>')
    parser.close()
    assert parser.seen == ["script"] and json.loads(parser.data) == texts


def test_the_script_is_allowed_by_its_hash_alone() -> None:
    # printf 'alert(1)' | openssl dgst -sha256 -binary | openssl base64
    assert script_source("alert(1)") == "'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"
    text = script()
    assert "</" not in text and "innerHTML" not in text and "eval(" not in text and "http" not in text
