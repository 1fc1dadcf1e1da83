"""Where a thought ends: an unfinished one has no answer, in this project's notation and in those of other models."""

from __future__ import annotations

import time

import pytest

from tagpr_rl.chains.segment import split_answer
from tagpr_rl.tags.grammar import final_answer, parse
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.tags.thoughts import begin_inside, split_thought
from tagpr_rl.types import ParseStatus


@pytest.mark.parametrize(
    "text, answer",
    [
        ("4", "4"),
        (" 4\n", "4"),
        ("<think>a</think>4", "4"),
        ("a</think>4", "4"),  # the template had opened the thought
        ("a</think>b</think> 4 ", "4"),
        ("<think>a</think>3<think>b</think>4", "4"),
        ("<think><think>a</think>4", "4"),
        ("<think>a</think>", ""),
        ("<think>the user wants 4", ""),
        ("4 <think>hm", ""),
        ("<think>a</think>4\n<think>wait, 5", ""),
        ("< think >a", ""),
        ("<Think>a", ""),
        ("<thinking>a", ""),
        ("<thinking>a</thinking>4", "4"),
        ("<thinking>a</think>4", "4"),
        ("<thought>a", ""),
        ("<reasoning>a</reasoning>\n4", "4"),
        ("<reasoning>a <thought>b</thought> c", ""),
        ("<think><reasoning>a</reasoning> so 4", ""),  # a step is closed, the thought is not
        ("<think><reasoning>a</think>4", "4"),
        ("[THINK]a", ""),
        ("[THINK]a[/THINK]4", "4"),
        ("◁think▷a", ""),
        ("◁think▷a◁/think▷4", "4"),
        ("<seed:think>a</seed:think>4", "4"),
        ("<|START_THINKING|>a", ""),
        ("<|START_THINKING|>a<|END_THINKING|>4", "4"),
        ("<|begin_of_thought|>a<|end_of_thought|>4", "4"),
        ("<think id=1>a", ""),
        ("<reflection>a</reflection>4", "4"),
        ("<scratchpad>a", ""),
        ("<analysis>a", ""),
        ("<antThinking>a</antThinking>4", "4"),
        ("<|thinking|>a<|/thinking|>4", "4"),
        ("<|think|>a", ""),
        ("<|channel>thought\na", ""),
        ("<|channel>thought\na<channel|>4", "4"),
        ("Thinking...\na\n...done thinking.\n\n4", "4"),
        ("Thinking...\na", ""),
        ('<|channel|>final <|constrain|>json<|message|>{"a": 4}<|return|>', '{"a": 4}'),
        ("<think>a</think>the title [THINK] big", "the title [THINK] big"),
        ("<|channel|>analysis<|message|>User asks 4", ""),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>", "4"),
        ("<|channel|>final<|message|>", ""),
        ("analysisUser asks for 4. Then 4.", ""),
        ("analysisUser asks for 4.assistantfinal4", "4"),
        ("analysis of a graph", "analysis of a graph"),
        ("Analysis of a graph", "Analysis of a graph"),
        ("", ""),
    ],
)
def test_the_answer_follows_a_finished_thought(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize("text, answer", [("a</think>4", "4"), ("the user wants 4", ""), ("", ""), ("[THINK]x", "")])
def test_a_prefilled_thought_is_open_from_the_start(text: str, answer: str) -> None:
    assert final_answer(text, prefilled=True) == answer


def test_a_teacher_s_answer_inside_an_open_thought_is_none() -> None:
    lines = "one\ntwo\nthree\nAnswer: 4"
    assert split_answer(lines) == ("one\ntwo\nthree", "4")
    assert split_answer(f"<think>{lines}") is None
    assert split_answer(f"<thinking>{lines}") is None
    assert split_answer(f"<thinking>hm</thinking>{lines}") == ("one\ntwo\nthree", "4")


def test_a_well_formed_response_has_the_parser_s_answer() -> None:
    text = "<think><conclude>they wrote [THINK] and ◁think▷</conclude></think>a [THINK] title"
    parsed = parse(text, default_schema())
    assert parsed.status is ParseStatus.OK and parsed.trace is not None
    assert final_answer(text) == parsed.trace.answer == "a [THINK] title"


def test_long_texts_take_linear_time() -> None:
    texts = ["<thinking>" * 50_000, "<reasoning></thought>" * 30_000, "<|channel|>" + "a" * 300_000, "<" * 300_000]
    started = time.process_time()
    for text in texts:
        split_thought(text)
    assert time.process_time() - started < 2


def test_a_file_shows_that_its_template_opened_the_thought() -> None:
    assert begin_inside(["a</think>4", "b</think>3", "cut"])
    assert not begin_inside(["<think>a</think>4", "<think>cut", "b</think>3"])
    assert not begin_inside(["a</think>4", "3", "2"])  # one stray tag is no evidence
    assert not begin_inside([])
