"""Chains, part by part: teachers, segmentation, labels."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.chains.agreement import compare
from tagpr_rl.chains.client.chat import Reply
from tagpr_rl.chains.labellers.label import ScriptedLabeller, read_labels, write_labels
from tagpr_rl.chains.segment import segment, split_answer
from tagpr_rl.chains.teachers.heuristic import HeuristicTeacher
from tagpr_rl.chains.teachers.interface import TeacherRequest, TrainedTeacher
from tagpr_rl.chains.teachers.scripted import ScriptedTeacher
from tagpr_rl.data.lamp import load_folder, splits_present
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.data.world.generate import WorldConfig, make_world
from tagpr_rl.data.world.rules import WORLD_TASKS
from tagpr_rl.data.world.words import DIVISIVE
from tagpr_rl.prompts.retrieve import rank
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, ProfileItem, Prompt, TagprError

SCHEMA = default_schema()
WORLD = make_world(WorldConfig(seed=5, train_users=30, dev_users=1, time_users=0))


def prompt_of(record: LampRecord, k: int = 4) -> Prompt:
    """A prompt that shows the k nearest items (the messages do not matter to the teachers)."""
    ids = tuple(item.id for item in rank(record, k))
    return Prompt(record.id, record.task, record.user_id, ({"role": "user", "content": "?"},), ids, 0, False, 1)


def texts_of(teacher, requests) -> list[str]:
    return [reply.text for reply in teacher.generate(requests)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\nAnswer: [1]", ("one\ntwo", "[1]")),
        ("one\n**Final answer:** sci-fi\n", ("one", "sci-fi")),
        ("<think>\none\ntwo\n</think>\n\n[2]", ("one\ntwo", "[2]")),
        ("<think>one</think>Answer: 5", ("one", "5")),
        ("the answer: is hidden\nAnswer: a\nmore\nanswer: b", ("the answer: is hidden\nAnswer: a\nmore", "b")),
        ("no answer line", None),
        ("Answer: 3", None),
        ("a\nAnswer:  ", None),
    ],
)
def test_split_answer(text, expected):
    assert split_answer(text) == expected


THOUGHT = "The history names it.\nThe user prefers it.\nSo it."
WHOLE = f"{THOUGHT}\nAnswer: comedy"
AFTER = [
    "<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>", "<|endoftext|>", "<｜end▁of▁sentence｜>", "<|end|>",
    "<|return|>", "<eos>", "[/INST]", "<|END_OF_TURN_TOKEN|>", "<|im_end|>\n<|im_start|>user\nnext\nAnswer: drama",
    "\nassistant",
    "assistant\n\nfoo\nAnswer: drama", "assistant", "\ufeff", "\u200b", "<|im_end", "</s></s>\n", "<turn|>",
    "<|im_end|>\n<|endoftext|>", "\n\nUser: another\n", "\n### Instruction:\nfoo", "\n```", "**", "<pad>" * 40,
    "\n\nHuman:", "[EOS]", "<|eom_id|>", "<|end_of_text|>", "<|user|>",
    "</answer>", "<EOT>", "<end>", "<stop>", "[DONE]", "<mask>", "<unused1>", "<|", "<end_of_tur", "</",
]  # fmt: skip
BEFORE = [
    "\ufeff", "<|im_start|>assistant\n", "<|start_header_id|>assistant<|end_header_id|>\n\n", "assistant\n\n",
    "<s> [INST] ", "<start_of_turn>model\n", "### Response:\n", "Assistant: ", "<bos>", "</think>\n\n", "\u200b",
    "<think>\n\n</think>\n\n", "<｜Assistant｜>", "<|channel|>final<|message|>", "[gMASK]<sop><|assistant|>\n",
]  # fmt: skip


@pytest.mark.parametrize("text", [*(WHOLE + after for after in AFTER), *(before + WHOLE for before in BEFORE)])
def test_what_stands_around_a_text_is_no_part_of_it(text: str) -> None:
    assert split_answer(text) == (THOUGHT, "comedy")


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{THOUGHT}</think>Answer: comedy</think>",
        f"<think>{THOUGHT}</think></think>Answer: comedy",
        f"<thinking>{THOUGHT}</thinking>comedy",
        f"[THINK]{THOUGHT}[/THINK]comedy</s>",
        f"◁think▷{THOUGHT}◁/think▷comedy",
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>comedy<|return|>",
        f"analysis{THOUGHT}assistantfinalcomedy",
        f"{THOUGHT}</think>\n\ncomedy<|im_end|>",
    ],
)
def test_thoughts_of_other_templates(text: str) -> None:
    assert split_answer(text) == (THOUGHT, "comedy")


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{WHOLE}",
        f"<think>{WHOLE}</think>",
        f"{WHOLE}\nUser:\nq\nAnswer: drama",
        f"{WHOLE}</think>",
        WHOLE.replace("it.\nSo", "it.<|im_end|>\nSo"),
        WHOLE.replace("it.\nSo", "it.</s>\nSo"),
        WHOLE.replace("comedy", "come<unk>dy"),
        "<|im_end|>",
    ],
)
def test_a_thought_without_an_answer_and_an_answer_to_another_question_are_none(text: str) -> None:
    assert split_answer(text) is None


def test_a_trained_teacher_s_text_is_its_own_turn() -> None:
    class One:
        name = "m"

        def generate(self, requests):
            return [
                Reply(f"<think>\n<conclude>So it.</conclude>\n</think>\ncomedy{after}")
                for after in ("", "<|im_end|>\n", "</s>")
            ]

    record = WORLD.records("train")[0]
    requests = [TeacherRequest(record, prompt_of(record))] * 3
    texts = {reply.text for reply in TrainedTeacher(One(), SCHEMA).generate(requests)}
    assert texts == {"So it.\nAnswer: comedy"}


def test_segment_lines_then_sentences_then_joins():
    assert segment("a\n\nb\nc") == ["a\n\n", "b\n", "c"]
    assert segment("One thing. Two things! Three (3.5) things.") == [
        "One thing. ",
        "Two things! ",
        "Three (3.5) things.",
    ]
    assert segment("only one") == ["only one"]
    assert segment("  \n ") == []
    many = segment("\n".join(["long step here"] * 14 + ["x", "y", "z"]))
    assert len(many) == 15
    assert many[-1] == "x\ny\nz"


@given(st.text(alphabet=" \n.!?;ab\"'", max_size=200), st.integers(1, 5), st.integers(5, 9))
def test_segment_loses_no_character(thought, least, most):
    steps = segment(thought, least, most)
    assert len(steps) <= most
    if thought.strip():
        assert "".join(steps) == thought
        assert all(step.strip() for step in steps)


def test_read_labels_accepts_each_index_once_only():
    good = [{"i": 1, "tag": "conclude"}, {"i": 0, "tag": "examine_examples"}]
    assert read_labels(json.dumps({"steps": good}), 2, SCHEMA) == ("examine_examples", "conclude")
    assert read_labels("```json\n" + json.dumps({"steps": good}) + "\n```", 2, SCHEMA) is not None
    thinking = f"<think>hm {{}}</think>{json.dumps({'steps': good})}<|im_end|>\n<|im_start|>user"
    assert read_labels(thinking, 2, SCHEMA) == ("examine_examples", "conclude")
    bad = [
        "not json",
        "[]",
        json.dumps({"steps": good[:1]}),
        json.dumps({"steps": [good[0], good[0]]}),
        json.dumps({"steps": [good[0], {"i": 2, "tag": "conclude"}]}),
        json.dumps({"steps": [good[0], {"i": 0, "tag": "summarise"}]}),
        json.dumps({"steps": [good[0], {"i": False, "tag": "conclude"}]}),
        json.dumps({"steps": [good[0], {"i": 0, "tag": ["conclude"]}]}),
    ]
    assert [read_labels(reply, 2, SCHEMA) for reply in bad] == [None] * len(bad)
    assert read_labels(write_labels(["conclude"]), 1, SCHEMA) == ("conclude",)


def test_scripted_labels_go_by_content():
    labeller = ScriptedLabeller()
    steps = {
        "The question asks for a headline": "understand_task",
        'The user wrote "However, always check the options"': "examine_examples",
        "All of them usually begin with a number": "identify_patterns",
        "The user prefers short titles": "infer_preference",
        "Comedy is closer to it than action": "compare_options",
        "On the other hand one item says otherwise": "weigh_conflict",
        "So a short title fits": "apply_preference",
        "Checking: this has four words": "check_answer",
        "Therefore the answer is 4": "conclude",
        "Bananas": "",
    }
    assert {step: labeller.tag(step) for step in steps} == steps
    assert read_labels(labeller.label([["Bananas"]], SCHEMA)[0].text, 1, SCHEMA) is None


def test_cohen_kappa_by_hand():
    # observed 3/4; expected (3*2 + 1*2)/16 = .5; kappa .5
    assert compare([(["a", "a", "a", "b"], ["a", "a", "b", "b"])], ["a", "b"]).kappa == pytest.approx(0.5)
    assert compare([(["a"], ["a"])], ["a", "b"]).kappa == 1.0


def test_scripted_teacher_is_right_when_the_items_decide():
    teacher = ScriptedTeacher(seed=1)
    records = WORLD.records("train")
    texts = texts_of(teacher, [TeacherRequest(r, prompt_of(r, 12)) for r in records])
    wrong = [
        r.task
        for r, text in zip(records, texts, strict=True)
        if split_answer(text)[1] != r.gold and r.input.split()[-1] not in DIVISIVE
    ]
    assert set(wrong) <= {"LaMP_1"}  # a second field may outweigh the main one
    assert len(wrong) <= 2


def test_scripted_teacher_reads_the_prompt_only():
    """Items outside the prompt change nothing; with an empty prompt it says that the history is empty."""
    teacher = ScriptedTeacher(seed=1)
    for record in WORLD.records("train")[:40]:
        prompt = prompt_of(record, 2)
        seen = tuple(item for item in record.profile if item.id in prompt.item_ids)
        full, cut = teacher.generate(
            [TeacherRequest(record, prompt), TeacherRequest(replace(record, profile=seen), prompt)]
        )
        assert full == cut
        assert "history is empty" in teacher.generate([TeacherRequest(record, prompt_of(record, 0))])[0].text


def test_error_rate_is_the_share_of_wrong_answers():
    records = make_world(WorldConfig(seed=6, train_users=120, dev_users=1, time_users=0)).records(
        "train", task="LaMP_2"
    )
    requests = [TeacherRequest(r, prompt_of(r)) for r in records]
    for rate in (0.0, 0.3, 1.0):
        texts = texts_of(ScriptedTeacher(error_rate=rate, seed=2), requests)
        share = sum(split_answer(t)[1] != r.gold for r, t in zip(records, texts, strict=True)) / len(records)
        assert share == pytest.approx(rate, abs=0.09)
    assert ScriptedTeacher(error_rate=0.3, seed=2).generate(requests) == ScriptedTeacher(
        error_rate=0.3, seed=2
    ).generate(requests)


def test_scripted_teacher_refuses_other_tasks_and_foreign_prompts():
    record = WORLD.records("train")[0]
    with pytest.raises(TagprError, match="use the heuristic teacher"):
        ScriptedTeacher().generate([TeacherRequest(replace(record, task="LaMP_7"), prompt_of(record))])
    with pytest.raises(TagprError, match="not in its profile"):
        ScriptedTeacher().generate([TeacherRequest(replace(record, profile=()), prompt_of(record))])


def _request(task: str, fields: list[dict[str, str]], **texts: str) -> TeacherRequest:
    items = tuple(ProfileItem(str(i), f) for i, f in enumerate(fields))
    record = LampRecord("q", task, "dev", "u", TASKS[task].make_input(**texts), items, "x")
    ids = tuple(item.id for item in items)
    return TeacherRequest(record, Prompt("q", task, "u", ({"role": "user", "content": "?"},), ids, 0, False, 1))


HEURISTIC_CASES = [
    (
        _request(
            "LaMP_1",
            [{"title": "Deep image models", "abstract": "pixels"}],
            title="T",
            first="Soil chemistry",
            second="Image features",
        ),
        "[2]",
    ),
    (
        _request(
            "LaMP_2",
            [{"tag": "comedy", "description": "a funny dog"}, {"tag": "action", "description": "a fast car chase"}],
            text="the car chase of the year",
        ),
        "action",
    ),
    # weights .1 + 1 and .1 + 0 (after common words): (1.1*2 + .1*5)/1.2 = 2.25 -> 2
    (_request("LaMP_3", [{"text": "bad soap", "score": "2"}, {"text": "fine", "score": "5"}], text="bad soap"), "2"),
    (
        _request(
            "LaMP_4", [{"title": "Four words are here", "text": "z"}], text="Rain. The river rose over the river wall."
        ),
        "The river rose over",
    ),
    (_request("LaMP_5", [], text="We study <think> graphs. Graphs are fun."), None),
    (_request("LaMP_7", [{"text": "hello all"}], text="good morning"), "good morning"),
]


@pytest.mark.parametrize(("request_", "answer"), HEURISTIC_CASES, ids=lambda v: getattr(v, "record", v) and None)
def test_heuristic_teacher(request_, answer):
    text = HeuristicTeacher().generate([request_])[0].text
    parts = split_answer(text)
    assert parts is not None
    assert answer is None or parts[1] == answer
    tags = read_labels(ScriptedLabeller().label([segment(parts[0])], SCHEMA)[0].text, len(segment(parts[0])), SCHEMA)
    assert tags is not None
    assert {"examine_examples", "infer_preference", "apply_preference"} <= set(tags)
    assert "<think>" not in text


def _real_folder() -> Path:
    default = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "lamp_real"
    return Path(os.environ.get("TAGPR_LAMP_REAL", default))


@pytest.mark.parametrize("task", ["LaMP_2", "LaMP_4"])
def test_heuristic_teacher_on_real_questions(task):
    folder = _real_folder()
    if not folder.is_dir() or not splits_present(folder, task):
        pytest.skip("no real LaMP files; set TAGPR_LAMP_REAL")
    records = load_folder(folder, [task], splits_present(folder, task)[0])[:40]
    texts = texts_of(HeuristicTeacher(), [TeacherRequest(r, prompt_of(r)) for r in records])
    labeller = ScriptedLabeller()
    for text in texts:
        parts = split_answer(text)
        assert parts is not None
        steps = segment(parts[0])
        assert len(steps) == 4
        assert read_labels(labeller.label([steps], SCHEMA)[0].text, 4, SCHEMA) is not None
    if task == "LaMP_2":
        assert {split_answer(text)[1] for text in texts} <= set(TASKS["LaMP_2"].labels)


def test_world_tasks_have_writers():
    assert set(ScriptedTeacher()._writers) == set(WORLD_TASKS)
