"""How a model is asked: templates told to think or not, room for a thought, the best prompt by training questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tagpr_rl.config import EvaluateStage, Recipe, prompt_styles, recipe_from_dict
from tagpr_rl.prompts.dataset import Dataset
from tagpr_rl.prompts.prompt import DIRECT_INSTRUCTION, THINKING_INSTRUCTION
from tagpr_rl.prompts.tokens import ChatTokenizer, opening
from tagpr_rl.stages.asking import CLOSE, Asker, Request, best, close_thoughts, room_for
from tagpr_rl.stages.context import StageContext
from tagpr_rl.stages.evaluate import choice_notes
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, TagprError

USER = "{% for m in messages %}U: {{ m.content }}\n{% endfor %}A:"
TEMPLATES = {
    "plain": USER,
    "switch": USER + "{% if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
    "deepseek": USER + "{% if thinking %}<think>{% else %}</think>{% endif %}",
    "prefilled": USER + "{{ '<think>\\n' }}",
}
HELLO = [{"role": "user", "content": "hello"}]


def tokenizer_folder(folder: Path, template: str) -> Path:
    """A tokenizer of single characters with that chat template."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {chr(code): code for code in range(128)}
    made = Tokenizer(models.WordLevel(letters, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?", eos_token="\x03", pad_token="\x00")
    wrapped.chat_template = TEMPLATES[template]
    wrapped.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "template, style, text",
    [
        ("plain", "direct", "U: hello\nA:"),
        ("plain", "thinking", "U: hello\nA:"),
        ("switch", "direct", "U: hello\nA:<think>\n\n</think>\n\n"),
        ("switch", "thinking", "U: hello\nA:"),
        ("switch", "reasoning", "U: hello\nA:"),
        ("deepseek", "direct", "U: hello\nA:</think>"),
        ("deepseek", "thinking", "U: hello\nA:<think>"),
        # Without a switch an open thought is closed; the other prompts keep it.
        ("prefilled", "direct", "U: hello\nA:<think>\n\n</think>\n\n"),
        ("prefilled", "thinking", "U: hello\nA:<think>\n"),
        ("prefilled", "reasoning", "U: hello\nA:<think>\n"),
    ],
)
def test_a_template_is_told_to_think_or_not(tmp_path: Path, template: str, style: str, text: str) -> None:
    tokenizer = ChatTokenizer(tokenizer_folder(tmp_path, template), style)
    assert tokenizer.render(HELLO) == text
    assert tokenizer.count(HELLO) == len(text)  # what the template adds counts against the prompt's limit
    assert bool(opening(text)) == text.rstrip().endswith("<think>")


def test_the_ordinary_instructions_have_no_tags() -> None:
    start = (
        "Answer the question at the end as this one user would want it answered. Below is the user's history: infer "
        "the user's preferences from it. "
    )
    assert start + "Write the answer only, without thought, tags or explanation." == DIRECT_INSTRUCTION
    assert (
        start + ("First think between <think> and </think>. After </think> write the answer only, without explanation.")
        == THINKING_INSTRUCTION
    )


def recipe(path: str | None = "Qwen/Qwen3-8B", style: str = "reasoning", **evaluate: Any) -> Recipe:
    return recipe_from_dict(
        {
            "name": "asked",
            "model": {"path": path},
            "data": {"retrieval": {"method": "none"}, "prompt": {"style": style, "max_response_tokens": 8}},
            "stages": {
                "data": {"kind": "data"},
                "model": {"kind": "model"},
                "base": {"kind": "sft", "init": "model", "dataset": "direct"},
                "chains": {"kind": "chains"},
                "sft": {"kind": "sft", "init": "base"},
                "eval": {"kind": "evaluate", "models": ["model", "base", "sft"], **evaluate},
            },
        },
        source="test",
    )


@pytest.mark.parametrize(
    "made, first, others",
    [
        (recipe(), ("direct", "thinking", "reasoning"), ["direct", "reasoning"]),
        (recipe(style="official"), ("direct", "thinking"), ["direct", "reasoning"]),
        (recipe(path=None), ("reasoning",), ["direct", "reasoning"]),  # random weights have no ordinary prompt
        (recipe(base_prompts=["direct"]), ("direct",), ["direct", "reasoning"]),
    ],
)
def test_only_a_model_as_given_is_asked_by_several_prompts(
    made: Recipe, first: tuple[str, ...], others: list[str]
) -> None:
    stage = made.stages["eval"]
    assert isinstance(stage, EvaluateStage)
    assert prompt_styles(made, stage, "model") == first
    assert [prompt_styles(made, stage, name) for name in ("base", "sft")] == [(style,) for style in others]


def test_a_base_that_was_trained_here_is_asked_by_the_prompts_that_the_recipe_names() -> None:
    made = recipe(models=["base", "sft", "model"], base_prompts=["direct", "thinking"])
    stage = made.stages["eval"]
    assert isinstance(stage, EvaluateStage)
    styles = [prompt_styles(made, stage, name) for name in stage.models]
    assert styles == [("direct", "thinking"), ("reasoning",), ("direct", "thinking", "reasoning")]


def test_a_thought_gets_the_room_behind_its_end_and_the_answer() -> None:
    stage = EvaluateStage(models=("model",), thinking_tokens=1000)
    assert room_for(stage, ["direct", "reasoning"], 100, 5000) == (100, 0)
    assert room_for(stage, ["direct", "thinking"], 100, 5000) == (1116, 1000)
    assert room_for(stage, ["direct", "thinking"], 100, 516) == (516, 400)  # as many as the model has positions for
    assert room_for(stage, ["direct", "thinking"], 100, 116) == (100, 0)


def test_an_open_thought_is_closed_and_answered_and_still_counts_as_cut() -> None:
    asked: list[str] = []

    def go_on(texts: Sequence[str]) -> list[tuple[str, bool]]:
        asked.extend(texts)
        return [("5", False) for _ in texts]

    responses = [("<think>a</think> 4", False), ("<think>a b", True), ("3", True)]
    assert close_thoughts(["P", "Q", "R"], responses, go_on) == [
        ("<think>a</think> 4", False),
        (f"<think>a b{CLOSE}5", True),
        ("3", True),  # without a thought nothing is open: a long answer was cut
    ]
    assert close_thoughts(["P<think>"], [("<think>a b", True)], go_on) == [(f"<think>a b{CLOSE}5", True)]
    assert asked == ["Q<think>a b", "P<think>a b"]  # the thought that the prompt opened is not opened again
    assert close_thoughts(["P"], [("<think>a</think> 4", False)], go_on)[0][0].endswith("4")


def test_the_best_prompt_is_the_highest_and_of_equal_ones_the_first() -> None:
    assert best({"direct": 0.25, "thinking": 0.5, "reasoning": 0.125}) == "thinking"
    assert best({"direct": 0.5, "thinking": 0.5}) == "direct"
    choice = {"chosen": "direct", "training_scores": {"direct": 0.5, "thinking": 0.25}}
    assert choice_notes({"model": choice}) == (
        "model is asked by the prompt 'direct', the best on training questions: direct 0.500, thinking 0.250",
    )


def question(number: int, split: str) -> LampRecord:
    text = f"Which tag? description: {split} film {number}"
    return LampRecord(f"{split}{number}", "LaMP_2", split, f"u{number % 2}", text, (), "comedy")


class Engine:
    """Answers directly right on training questions, and right on held-out ones after a thought only."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.limits: list[int | None] = []

    def use(self, folder: Path) -> None:
        """There is one model."""

    def responses(
        self, prompts: Sequence[list[int]], *, temperature: float, seed: int, max_tokens: int | None = None
    ) -> list[tuple[str, bool]]:
        texts = ["".join(map(chr, ids)) for ids in prompts]
        self.prompts += texts
        self.limits.append(max_tokens)
        return [self._answer(text) for text in texts]

    def _answer(self, text: str) -> tuple[str, bool]:
        if text.endswith(CLOSE):
            return "comedy", False
        if THINKING_INSTRUCTION in text:
            return ("<think>so</think>classic", False) if "train film" in text else ("<think>so and so", True)
        return ("comedy" if "train film" in text else "classic"), False


def test_the_prompt_is_chosen_on_training_questions_alone(tmp_path: Path) -> None:
    made, folder = recipe(), tokenizer_folder(tmp_path, "plain")
    made.data.prompt.__dict__["max_tokens"] = 4000
    dataset = Dataset(made, default_schema())
    dataset.__dict__.update(train=[question(n, "train") for n in range(300)], held_out=[question(0, "dev")])
    context = SimpleNamespace(
        recipe=made, name="eval", dataset=dataset, schema=default_schema(), model_folder=lambda name: folder,
        warn=lambda text: None,
    )  # fmt: skip
    stage, engine = EvaluateStage(models=("model",)), Engine()
    asker = Asker(cast(StageContext, context), stage, engine, thought_tokens=64)
    assert asker.choose("model", ("thinking", "direct")) == ("direct", {"thinking": 0.0, "direct": 1.0})
    assert len(engine.prompts) == 2 * 200 and engine.limits == [64, None]
    assert all("train film" in prompt and "dev film" not in prompt for prompt in engine.prompts)
    assert asker.choose("model", ("reasoning",)) == ("reasoning", {}) and len(engine.prompts) == 400

    thought = asker.ask(Request("model", "thinking", dataset.held_out))
    assert thought.texts == [f"<think>so and so{CLOSE}comedy"]
    assert (thought.result.score, thought.result.truncated) == (1.0, 1.0)
    assert engine.prompts[-1].endswith(f"A:<think>so and so{CLOSE}")
    direct = asker.ask(Request("model", "direct", dataset.held_out))
    assert (direct.result.score, direct.result.truncated) == (0.0, 0.0)

    narrow = Asker(cast(StageContext, context), stage, engine, thought_tokens=0)
    assert narrow.choose("model", ("thinking", "direct")) == ("direct", {})
    with pytest.raises(TagprError, match="stage 'eval': the prompt `thinking` has no room"):
        narrow.choose("model", ("thinking",))
