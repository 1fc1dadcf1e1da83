"""The traces of a run that grows: only new steps are read, and a browser starts anew when it must. No evidence without
the chains' own rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_report import GOOD, jsonl, make_recipe, make_run

from tagpr_rl.chains.evidence import item_evidence
from tagpr_rl.report.page import traces as page
from tagpr_rl.run.layout import RunDir
from tagpr_rl.serve.live import traces as module
from tagpr_rl.serve.live.links import items_of, step_links
from tagpr_rl.serve.live.traces import GrowingTraces
from tagpr_rl.tags.schema import default_schema

SCHEMA = default_schema()


def rollouts(step: int, records: int = 2, samples: int = 2, **more: Any) -> list[dict[str, Any]]:
    return [
        {"step": step, "record_id": f"{step}.{r}", "task": "LaMP_3", "user_id": f"u{r}", "group": str(r), "sample": s,
         "prompt": "p", "gold": "4", "response": GOOD, "advantage": 0.5, "reward_total": s / 2} | more
        for r in range(records) for s in range(samples)
    ]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Guided has steps 1 and 2: two groups of two each."""
    run = make_run(tmp_path, evaluated=False)
    for path in run.stage(7, "guided").rollouts.iterdir():
        path.unlink()
    for step in (1, 2):
        write(run, step, rollouts(step))
    return run


def write(run: RunDir, step: int, rows: list[dict[str, Any]]) -> Path:
    path = run.stage(7, "guided").rollouts / f"step_{step:04d}.jsonl"
    jsonl(path, rows)
    return path


def read(traces: GrowingTraces, generation: str, mark: int) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(traces.since(generation, mark))
    return data


def test_a_new_step_alone_is_sent(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = GrowingTraces(run, make_recipe(), SCHEMA)
    first = read(traces, "", -1)
    assert first["whole"] and len(first["traces"]) == 8 and first["shown"]["rollouts"] == [8, 8]
    traces.update()
    assert read(traces, first["generation"], first["mark"])["traces"] == []
    opened = []
    real = page.read_rows
    monkeypatch.setattr(page, "read_rows", lambda path: opened.append(path) or real(path))
    new = write(run, 3, rollouts(3))
    traces.update()
    second = read(traces, first["generation"], first["mark"])
    assert opened == [new]
    assert not second["whole"] and second["mark"] == first["mark"] + 1
    assert [group[1] for group in second["groups"]] == [3, 3] and [trace["g"] for trace in second["traces"]] == [
        4,
        4,
        5,
        5,
    ]
    assert len(second["records"]) == len(second["prompts"]) == 2 and second["shown"]["rollouts"] == [12, 12]
    whole = read(traces, "", -1)
    for key in ("groups", "traces", "records", "prompts"):
        assert whole[key] == first[key] + second[key]


def test_a_step_made_again_begins_a_generation(run: RunDir) -> None:
    traces = GrowingTraces(run, make_recipe(), SCHEMA)
    before = read(traces, "", -1)
    write(run, 2, rollouts(2, samples=3))
    traces.update()
    after = read(traces, before["generation"], before["mark"])
    assert after["whole"] and after["generation"] != before["generation"] and len(after["traces"]) == 4 + 6
    (run.stage(7, "guided").rollouts / "step_0002.jsonl").unlink()  # trimmed by a resume
    traces.update()
    assert len(read(traces, "", 0)["traces"]) == 4


def test_a_cut_line_is_no_response(run: RunDir) -> None:
    path = write(run, 3, rollouts(3))
    path.write_text(path.read_text() + '{"step": 3, "resp')
    traces = GrowingTraces(run, make_recipe(), SCHEMA)
    assert len(traces.traces.traces) == 12


def test_too_many_traces_halve_the_steps(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_TRACES", 16)
    traces = GrowingTraces(run, make_recipe(), SCHEMA)
    first = read(traces, "", -1)
    for step in range(3, 7):  # 24 of at most 16 * 5 / 4
        write(run, step, rollouts(step))
        traces.update()
    after = read(traces, first["generation"], first["mark"])
    assert after["whole"] and sorted({group[1] for group in after["groups"]}) == [2, 4, 6]
    assert after["shown"]["rollouts"] == [12, 24] and len(after["traces"]) == len(after["groups"]) * 2 == 12
    assert {after["records"][group[2]][1][0] for group in after["groups"]} == {"2", "4", "6"}


def test_a_large_step_gives_whole_groups(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_STEP", 9)
    traces = GrowingTraces(run, make_recipe(), SCHEMA)
    write(run, 3, rollouts(3, records=20, samples=4))
    traces.update()
    assert traces.traces.shown["rollouts"] == [8 + 8, 8 + 80]


PROMPT = (
    "Do.\nThe user's history, most relevant first:\n"
    '4 is the score for "game was strong"\n2 is the score for "soup was plain"\n'
    "The question:\nWhat is the score of the following review on a scale of 1 to 5? review: soup was strong"
)


def test_evidence_points_to_items(run: RunDir) -> None:
    """GOOD's first step says "the user gave 4 for strong": "strong" is in the question, "gave" in no item. The pair
    (4, strong) is a clue of item 0 all the same, since "4" is not in what the question is about."""
    write(run, 1, rollouts(1, records=1, prompt=PROMPT))
    traces = GrowingTraces(run, make_recipe(), SCHEMA).traces
    assert step_links(traces, 0) == [[[0, ["4", "strong"]]], [], [[0, ["4", "strong"]]]]
    with pytest.raises(IndexError):
        step_links(traces, -1)


def test_a_word_of_the_question_is_no_evidence() -> None:
    """soup, was and strong are in the question; strong counts with its label alone, and a label counts by itself."""
    items = items_of("LaMP_3", ['4 is the score for "game was strong"', '2 is the score for "soup was plain"'])
    steps = ["the soup was strong", "4 for strong", "2 alone"]
    found = item_evidence(steps, "LaMP_3", "soup was strong", items, frozenset())
    assert found == [{}, {0: {"4", "strong"}}, {1: {"2"}}]
    assert item_evidence(steps, "LaMP_3", "soup was strong", items, frozenset({"2"}))[2] == {}
