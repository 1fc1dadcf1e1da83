"""What templates and tokenizers do is found by looking: a table of model families, each with its right values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.model.fit import config_mistakes, stop_ids
from tagpr_rl.model.template import CLOSED, KEPT, MERGED, NONE, OPEN, probe
from tagpr_rl.model.tokenizer import load_tokenizer
from tagpr_rl.prompts.rows import sft_rows
from tagpr_rl.prompts.tokens import ChatTokenizer, ResponseText, continuation, opening
from tagpr_rl.report.cards import model_card
from tagpr_rl.tags.grammar import final_answer, parse, render
from tagpr_rl.tags.schema import default_schema, schema_from_mapping
from tagpr_rl.types import ParseStatus, StageManifest, Step, TaggedTrace, TagprError

pytest.importorskip("transformers")
from support.made_tokenizers import CHATML, GEMMA, MADE, QWEN3, byte_level

SCHEMA = default_schema()
TRACE = TaggedTrace((Step("examine_examples", "two fives"), Step("conclude", "so a five")), "5")
RESPONSE = render(TRACE)
QUESTION = [{"role": "user", "content": "First think between <think> and </think>. Which?"}]


@pytest.mark.parametrize(
    "name, thought, switch, off, past, system, text, bos, end, dated",
    [
        ("qwen3", NONE, "enable_thinking", CLOSED, False, KEPT, "exact", 0, "<|im_end|>", False),
        ("qwen3_thinking", OPEN, None, OPEN, True, KEPT, "exact", 0, "<|im_end|>", False),
        ("r1_distill", OPEN, None, OPEN, False, KEPT, "exact", 1, "<|end|>", False),
        ("v31", OPEN, "thinking", CLOSED, False, KEPT, "exact", 1, "<|end|>", False),
        ("gemma", NONE, None, NONE, True, MERGED, "trimmed", 1, "<end_of_turn>", False),
        ("llama3", NONE, None, NONE, True, KEPT, "trimmed", 1, "<|eot_id|>", True),
        ("smollm2", NONE, None, NONE, True, KEPT, "exact", 0, "<|im_end|>", False),
        ("mistral", NONE, None, NONE, True, KEPT, "exact", 1, "</s>", False),
    ],
)
def test_each_family_s_facts(
    name: str, thought: str, switch: str | None, off: str, past: bool, system: str, text: str, bos: int, end: str,
    dated: bool,
) -> None:  # fmt: skip
    tokenizer = MADE[name]()
    own = tokenizer.chat_template
    facts = probe(tokenizer, SCHEMA)
    assert tokenizer.chat_template == own  # looking changes nothing
    assert (facts.thought, facts.switch, facts.thinking_off) == (thought, switch, off)
    assert (facts.past_thoughts, facts.system, facts.text) == (past, system, text)
    assert (facts.bos, facts.end, facts.dated, facts.special_tags, facts.loses) == (bos, end, dated, (), ())
    assert facts.end_id == tokenizer.convert_tokens_to_ids(end)
    assert facts.num_tokens == len(tokenizer)
    assert (facts.template is not None) == (name in ("v31", "llama3"))
    json.dumps(facts.record())


def test_what_is_unusual_is_said() -> None:
    notes = {name: "; ".join(probe(make(), SCHEMA).notes) for name, make in MADE.items()}
    assert notes["qwen3"] == notes["mistral"] == ""
    assert "opens <think> itself" in notes["r1_distill"]
    assert "thinking is on" in notes["v31"]
    assert "no system role" in notes["gemma"] and "eos_token is <eos>" in notes["gemma"]
    assert "today's date; prompts have 2025-01-01" in notes["llama3"]
    assert "You are a helpful AI assistant named Smol" in notes["smollm2"]
    lower = probe(byte_level(CHATML, lower=True), SCHEMA)
    assert lower.loses == ("capital letters",) and "loses capital letters" in lower.notes[0]


@pytest.mark.parametrize(
    "make, mistake",
    [
        (lambda: byte_level(None), "has no chat template; give a template of your own with model.chat_template"),
        (lambda: byte_level("{{ raise_exception('no') }}"), "raises on messages of user: no"),
        (lambda: byte_level("{{ messages[0].content.nothing.more }}"), "raises on messages of user"),
        (lambda: byte_level("{% if %}"), "raises on messages of user"),
        (lambda: byte_level(CHATML.split("{% if add")[0]), "writes '' before a response, and '<|im_start|>"),
        (lambda: byte_level(CHATML.replace("assistant\n' }}", "assistant\n<thinking>\n' }}")), "<thinking>"),
        (lambda: byte_level(CHATML.replace("assistant\n' }}", "assistant\n<think>\n</think>\n' }}")), "closes the"),
        (lambda: byte_level(CHATML.replace("m.content", "m.content[:2000]")), "drops or changes the user's text"),
        (lambda: byte_level(CHATML.replace("m.content", "m.content | lower")), "drops or changes the user's text"),
        (lambda: byte_level(CHATML.replace("m.content", "m.content.replace('<think>', '')")), "drops or changes"),
        (lambda: byte_level(CHATML.replace("m.content", "m.content.split('</think>')[-1]")), "drops or changes"),
        (lambda: byte_level(CHATML.replace("m.content", "m.content.split('</b>')[-1]")), "drops or changes"),
        (lambda: byte_level("{{ range(90000) | random }}" + CHATML), "differently each time"),
        (
            lambda: byte_level("{{ bos_token + bos_token }}" + CHATML, ("<b>", "<|im_end|>"), bos="<b>"),
            "begins with 2 tokens <b>",
        ),
        (lambda: byte_level(CHATML, (), eos=None, think=None), "nothing ends a response"),
        (lambda: byte_level(CHATML, ("<|im_end|>", "<conclude>"), bos="<conclude>"), "<conclude> is the tokenizer's"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_a_remedy(make: Any, mistake: str) -> None:
    with pytest.raises(TagprError) as error:
        probe(make(), SCHEMA)
    assert mistake in str(error.value)


def test_a_template_of_the_last_message_alone_is_read_by_its_question() -> None:
    facts = probe(byte_level(CHATML.replace("in messages", "in messages[-1:]")), SCHEMA)
    assert (facts.system, facts.end, facts.thought) == (MERGED, "<|im_end|>", NONE)


def test_every_mistake_is_listed_at_once() -> None:
    tags = [{"name": "Look", "purpose": "p"}, {"name": "end", "purpose": "q"}]
    schema = schema_from_mapping({"version": "t", "tags": tags}, where="test")
    with pytest.raises(TagprError) as error:
        probe(byte_level(CHATML.replace("m.content", "m.content[:9]"), lower=True), schema)
    assert "'<Look>' becomes '<look>'" in str(error.value) and "drops or changes" in str(error.value)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("special", [False, True])
def test_a_learned_response_is_read_back(name: str, special: bool, tmp_path: Path) -> None:
    """What SFT teaches is what a rollout of the taught model is read as: `<think>` once, whoever wrote it."""
    tokenizer = MADE[name]()
    if special:
        tokenizer.add_tokens(["<think>", "</think>", "<conclude>", "</conclude>"], special_tokens=True)
    facts = probe(tokenizer, SCHEMA)
    tokenizer.chat_template = facts.template or tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    chat = ChatTokenizer(tmp_path, schema=SCHEMA)
    (row,), dropped = sft_rows(chat, [(QUESTION, RESPONSE)], 500)
    ids, length = row["input_ids"], row["prompt_length"]
    assert dropped == 0 and ids[-1] == facts.end_id
    assert chat.text(ids[:length], ids[length:]) == RESPONSE
    whole = tokenizer.decode(ids)
    assert whole.count("<think>") - QUESTION[0]["content"].count("<think>") == 1
    assert parse(chat.text(ids[:length], ids[length:]), SCHEMA).trace == TRACE
    (row,), _ = sft_rows(chat, [(QUESTION, "5")], 500)
    direct = chat.text(row["input_ids"][: row["prompt_length"]], row["input_ids"][row["prompt_length"] :])
    assert final_answer(direct) == "5"


@pytest.mark.parametrize("name", MADE)
def test_a_direct_prompt_has_no_open_thought(name: str, tmp_path: Path) -> None:
    MADE[name]().save_pretrained(tmp_path)
    direct = ChatTokenizer(tmp_path, "direct").render(QUESTION)
    assert opening(direct) == ""
    assert direct.endswith("</think>\n\n") == (name in ("qwen3", "qwen3_thinking", "r1_distill"))
    assert direct.endswith("</think>") == (name == "v31")
    assert bool(opening(ChatTokenizer(tmp_path, "thinking").render(QUESTION))) == (
        name in ("qwen3_thinking", "r1_distill", "v31")
    )


def test_a_system_message_reaches_every_model(tmp_path: Path) -> None:
    for name, make in MADE.items():
        make().save_pretrained(tmp_path / name)
        prompt = ChatTokenizer(tmp_path / name).render([{"role": "system", "content": "be brief"}, *QUESTION])
        assert 0 <= prompt.index("be brief") < prompt.index("First think")


def test_special_tags_survive_and_other_special_tokens_do_not() -> None:
    tokenizer = byte_level(QWEN3, think=True, pad="<|pad|>")
    assert probe(tokenizer, SCHEMA).special_tags == ("<think>", "</think>")
    text = ResponseText(tokenizer, SCHEMA)
    ids = tokenizer.encode(f"{RESPONSE}<|im_end|><|pad|>", add_special_tokens=False)
    assert "<think>" not in tokenizer.decode(ids, skip_special_tokens=True)  # what would be lost
    assert text([], ids) == RESPONSE


def test_a_turn_s_end_that_is_no_special_token_is_no_text() -> None:
    tokenizer = byte_level(CHATML, (), eos=None, think=None)
    tokenizer.add_tokens(["<|im_end|>"])
    ids = tokenizer.encode(f"{RESPONSE}<|im_end|>", add_special_tokens=False)
    assert ResponseText(tokenizer, SCHEMA)([], ids) == RESPONSE


def test_generation_stops_where_a_turn_ends(tmp_path: Path) -> None:
    facts = probe(MADE["gemma"](), SCHEMA)
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
    assert stop_ids(tmp_path, facts) == ([1], [1, facts.end_id])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, facts.end_id]}))
    assert stop_ids(tmp_path, facts) == ([1, facts.end_id], [1, facts.end_id])
    for bad in ("<eos>", ["<eos>"], 1.5, True, {"a": 1}):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": bad}))
        with pytest.raises(TagprError, match=r"generation_config\.json: eos_token_id is .*no token's id"):
            stop_ids(tmp_path, facts)


def test_a_vocabulary_size_that_is_no_number_is_said() -> None:
    assert "vocab_size is '300'" in config_mistakes({"vocab_size": "300"}, probe(MADE["gemma"](), SCHEMA))[0]


def test_a_vocabulary_must_hold_every_token() -> None:
    facts = probe(MADE["qwen3"](), SCHEMA)
    assert config_mistakes({"vocab_size": facts.num_tokens}, facts) == []
    assert config_mistakes({"text_config": {"vocab_size": facts.num_tokens + 60}}, facts) == []
    (mistake,) = config_mistakes({"vocab_size": facts.num_tokens - 1}, facts)
    assert f"embeds {facts.num_tokens - 1} tokens" in mistake


def test_a_damaged_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TagprError, match="its tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name, direct, says",
    [
        ("qwen3", False, "A response ends with `<|im_end|>`."),
        ("qwen3", True, "`chat_template_kwargs: {enable_thinking: false}`"),
        ("r1_distill", True, "end the prompt with `</think>`"),
        ("gemma", False, "A turn ends with <end_of_turn>, and eos_token is <eos>: both end a response."),
    ],
)
def test_the_model_card_says_how_to_ask(name: str, direct: bool, says: str) -> None:
    details = {"template": probe(MADE[name](), SCHEMA).record()}
    manifest = StageManifest("model", "model", "", 0.0, {}, "", {}, details=details)
    (text, _) = model_card._template({"model": manifest}, direct)
    assert says in text
    assert model_card._template({}, direct) == []  # a run of an earlier release


def test_gemma_s_date_is_none_and_llama_s_is_pinned() -> None:
    facts = probe(MADE["llama3"](), SCHEMA)
    tokenizer = MADE["llama3"]()
    tokenizer.chat_template = facts.template
    assert "Today Date: 01 Jan 2025" in tokenizer.apply_chat_template(QUESTION, tokenize=False)
    again = probe(tokenizer, SCHEMA)
    assert not again.dated and again.template is None and again.thought == facts.thought
    assert "2025" not in byte_level(GEMMA).apply_chat_template(QUESTION, tokenize=False)


@pytest.mark.parametrize("end", ["<think>", "<think>\n", "<think>\n\n"])
def test_continuation_and_opening_make_the_response(end: str) -> None:
    assert parse(opening(end) + continuation(end, RESPONSE), SCHEMA).trace == TRACE
    assert continuation(end, RESPONSE).count("<think>") == 0
    assert parse(opening(end) + "<think>" + RESPONSE, SCHEMA).status is ParseStatus.NESTED  # a model that opens again
    assert continuation("no thought", RESPONSE) == RESPONSE and opening("<think>a") == ""
