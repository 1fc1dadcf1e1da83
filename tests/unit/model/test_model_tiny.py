"""The tiny model's folder: exact round trips of what the metrics compare, sizes that verl needs, determinism."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagpr_rl.chains.teachers.scripted import ScriptedTeacher
from tagpr_rl.data.tasks import MOVIE_TAGS, TASKS
from tagpr_rl.data.world.generate import WorldConfig, make_world
from tagpr_rl.prompts.prompt import build_prompt, prompt_phrases
from tagpr_rl.prompts.retrieve import rank
from tagpr_rl.tags.grammar import parse, render
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import ParseStatus, Step, TaggedTrace, TagprError

pytestmark = pytest.mark.torch

SCHEMA = default_schema()
TAGS = ["<think>", "</think>", *(f"<{s}{name}>" for name in SCHEMA.names for s in ("", "/"))]
LABELS = [label for spec in TASKS.values() for label in spec.labels]
PHRASES = [*prompt_phrases(SCHEMA), *LABELS, *TAGS, "[1]", "[2]"]


def count(messages):
    return sum(len(m["content"].split()) for m in messages)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    records = make_world(WorldConfig(seed=2, train_users=60, dev_users=1, time_users=0)).records("train")
    texts = [str(record.gold) for record in records]
    for style in ("reasoning", "direct"):
        for record in records:
            prompt = build_prompt(
                record, rank(record, 4), style=style, schema=SCHEMA, max_tokens=9999, count_tokens=count
            )
            texts.append(prompt.messages[0]["content"])
            if style == "reasoning":
                from tagpr_rl.chains.teachers.interface import TeacherRequest

                texts.append(ScriptedTeacher().generate([TeacherRequest(record, prompt)])[0].text)
    return texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus) -> Path:
    from tagpr_rl.model.tiny import build_tiny

    path = tmp_path_factory.mktemp("tiny")
    info = build_tiny(path, corpus_texts=corpus, phrases=PHRASES, seed=1)
    assert info.kind == "word"
    assert 200 < info.vocab_size < 300
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_model_and_tokenizer_agree(folder, tokenizer):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert 200_000 < sum(p.numel() for p in model.parameters()) < 250_000
    assert model.config.head_dim == 32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("text", [*MOVIE_TAGS, "[1]", "[2]", "5", "why farm matters today"])
def test_answers_survive_exactly(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_response_survives_up_to_white_space(tokenizer):
    trace = TaggedTrace(
        tuple(Step(name, "the user gave 2 for poor, 5 for lovely") for name in SCHEMA.names), "thought-provoking"
    )
    ids = tokenizer(render(trace), add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    parsed = parse(tokenizer.decode(ids + [tokenizer.eos_token_id], skip_special_tokens=True), SCHEMA)
    assert parsed.status is ParseStatus.OK
    assert [step.tag for step in parsed.trace.steps] == list(SCHEMA.names)
    assert parsed.trace.steps[0].text == "the user gave 2 for poor , 5 for lovely"
    assert parsed.trace.answer == "thought-provoking"


def test_the_corpus_has_no_unknown_word_and_prompts_are_short(tokenizer, corpus):
    lengths = []
    for text in corpus:
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        lengths.append(len(ids))
    assert max(lengths) < 130
    assert all(len(tokenizer(tag, add_special_tokens=False).input_ids) == 1 for tag in TAGS)


def test_chat_template(tokenizer):
    """Word-level: no line break costs a token, and the generation prompt is a prefix of the whole chat."""
    chat = [{"role": "user", "content": "the\nquestion"}, {"role": "assistant", "content": "5"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<|im_start|>user the question<|im_end|><|im_start|>assistant 5<|im_end|>"
    opened = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(opened)
    assert opened.endswith("<|im_start|>assistant")
    assert len(tokenizer("\n", add_special_tokens=False).input_ids) == 1


def test_same_input_same_bytes_and_the_global_generator_is_left_alone(folder, corpus, tmp_path):
    import torch

    from tagpr_rl.model.tiny import build_tiny

    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_tiny(tmp_path / "a", corpus_texts=corpus, phrases=PHRASES, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (folder / name).read_bytes()
    build_tiny(tmp_path / "b", corpus_texts=corpus, phrases=PHRASES, seed=2)
    assert (tmp_path / "b" / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def test_many_words_give_byte_level_bpe(tmp_path):
    from transformers import AutoTokenizer

    from tagpr_rl.model.tiny import build_tiny

    texts = [f"word{i} naïve “quoted” text{i * 7}." for i in range(1200)]
    info = build_tiny(tmp_path, corpus_texts=texts, phrases=TAGS, max_vocab=800)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert info.kind == "bpe"
    assert info.vocab_size == len(tokenizer) <= 800
    for text in ["unseen wörds, with 日本 too\n", "<think>\n<conclude>so 5</conclude>\n</think>\nbased on a book"]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer("</conclude>", add_special_tokens=False).input_ids) == 1


def test_bad_input():
    from tagpr_rl.model.tiny import build_tiny, build_tokenizer

    with pytest.raises(TagprError, match="corpus for the tiny tokenizer is empty"):
        build_tokenizer([" "], [])
    with pytest.raises(TagprError, match=r"model\.hidden 30 must be heads"):
        build_tiny(Path("unused"), corpus_texts=["a"], hidden=30)
    with pytest.raises(TagprError, match="max_vocab is 100"):
        build_tokenizer([f"w{i}" for i in range(2000)], [], max_vocab=100)
