"""LaMP's prompt and its token budget by hand, and one golden file per task (`TAGPR_GOLDEN=write` writes them anew)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpr_rl.data.tasks import TASKS
from tagpr_rl.prompts.official import official_text
from tagpr_rl.prompts.prompt import build_official_prompt, build_prompt
from tagpr_rl.prompts.retrieve import rank
from tagpr_rl.prompts.tokens import WordTokens
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, ProfileItem, Prompt, TagprError

GOLDEN = Path(__file__).resolve().parents[2] / "golden"

# Made-up texts, one user per task.
TEXTS = [
    "A lighthouse keeper counts the ships that never return to the harbour.",
    "Two sisters open a bakery in an old railway station, and a ghost orders bread.",
    "The harbour master's daughter learns to read the sea from a deaf sailor.",
    "A quiet town votes on whether its only bridge should be painted red or green.",
]
SHORT = ["Ships and silence", "Bread for a ghost", "Reading the sea", "The painted bridge"]
LABELS = {"LaMP_2": ["classic", "fantasy", "psychology", "comedy"], "LaMP_3": ["4", "2", "5", "3"],
          "LaMP_2N": ["travel", "food & drink", "culture & arts", "politics"]}  # fmt: skip
QUESTION = "A sailor's ghost returns to the harbour and paints the lighthouse red."


def words(messages: Sequence[Mapping[str, str]]) -> int:
    """One token a word, and 3 for the chat template."""
    return 3 + sum(len(message["content"].split()) for message in messages)


def record_of(task: str) -> LampRecord:
    spec = TASKS[task]
    items = []
    for n, (text, short) in enumerate(zip(TEXTS, SHORT, strict=True)):
        label = LABELS.get(task, [""] * 4)[n]
        values = {"title": short, "abstract": text, "text": text, "description": text, "tag": label, "score": label,
                  "category": label}  # fmt: skip
        items.append(ProfileItem(f"i{n}", {key: values[key] for key in spec.item_keys}))
    if task == "LaMP_1":
        question = spec.make_input(title=QUESTION, first="Ghosts of the harbour", second="A history of red paint")
    else:
        question = spec.make_input(text=QUESTION)
    return LampRecord("7", task, "dev", "u", question, tuple(items))


def official(record: LampRecord, items: Sequence[ProfileItem], limit: int) -> Prompt:
    return build_official_prompt(record, items, max_tokens=limit, count_tokens=words, tokens=WordTokens())


def golden_text(task: str) -> str:
    """Every kind of prompt of the task's record; `roomy` cuts nothing, `tight` cuts the items."""
    record = record_of(task)
    items = rank(record, 3, ties="position")
    n_input = len(record.input.split())
    made = {
        "official, roomy": official(record, items, 400),
        "official, tight": official(record, items, n_input + 3 + 45),
        "official, no items": official(record, (), 400),
    }
    for style in ("reasoning", "direct"):
        made[style] = build_prompt(
            record, items, style=style, schema=default_schema(), max_tokens=1000, count_tokens=words
        )
    parts = []
    for name, prompt in made.items():
        facts = f"items {', '.join(prompt.item_ids) or 'none'}; {prompt.n_tokens} words; cut {prompt.question_cut}"
        parts.append(f"=== {name}: {facts}\n{prompt.messages[0]['content']}\n")
    return "\n".join(parts)


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_as_on_file(task: str) -> None:
    path = GOLDEN / f"prompt_{task}.txt"
    if os.environ.get("TAGPR_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(golden_text(task), encoding="utf-8")
    assert golden_text(task) == path.read_text(encoding="utf-8")


def reviews(texts: Sequence[str], question: str) -> LampRecord:
    items = tuple(ProfileItem(str(n), {"text": text, "score": "4"}) for n, text in enumerate(texts))
    return LampRecord("7", "LaMP_3", "dev", "u", question, items)


def test_the_budget_by_hand() -> None:
    # Input: 4 words. Limit 30: the profile may have 30 - min(4, 18) = 26. Two items: (26 - 1 - 2) // 2 = 11 each.
    # Around a text stand 7 words ('4 is the score for " "'): item 0 keeps 11 - 7 = 4 of its 2 and leaves 2,
    # item 1 keeps 11 + 2 - 7 = 6 of 9.
    record = reviews(["a b", "c d e f g h i j k"], "What? review: q r"[:17])
    made = official_text(record, record.profile, 30, WordTokens())
    assert made.text == '4 is the score for "a b" , and 4 is the score for "c d e f g h" . What? review: q r'
    assert (made.n_items, made.question_cut) == (2, False)


def test_a_long_question_leaves_two_fifths_to_the_profile() -> None:
    # 20 words of input, limit 20: 20 - min(20, 12) = 8 for the profile. One item: (8 - 1) // 1 = 7, minus 7 around: 0.
    record = reviews(["a b c"], "review: " + " ".join(f"q{n}" for n in range(19)))
    made = official_text(record, record.profile, 20, WordTokens())
    # Six words around and the blank text, the full stop, and the question cut to the limit.
    assert made.text == '4 is the score for "" . review: ' + " ".join(f"q{n}" for n in range(12))
    assert made.question_cut


def test_no_room_lowers_the_questions_share_and_then_gives_up() -> None:
    # One item needs 7 words and 1: with 60 % for the question 10 - 6 = 4 is too little, with 20 % 10 - 2 = 8 is enough.
    question = "review: " + " ".join(f"q{n}" for n in range(9))
    record = reviews(["a"], question)
    made = official_text(record, record.profile, 10, WordTokens())
    assert (made.n_items, made.text) == (1, '4 is the score for "" . review: q0 q1')
    assert official_text(record, record.profile, 7, WordTokens()) == official_text(record, (), 7, WordTokens())


def test_the_limit_holds_after_the_chat_template() -> None:
    record = record_of("LaMP_4")
    prompt = official(record, record.profile, 40)
    assert prompt.n_tokens == words(prompt.messages) <= 40
    with pytest.raises(TagprError, match="the chat template alone needs 3 tokens, and the limit max_tokens is 3"):
        official(record, record.profile, 3)


@settings(max_examples=200)
@given(st.sampled_from(sorted(TASKS)), st.integers(4, 200), st.integers(0, 4))
def test_any_limit_holds(task: str, limit: int, n: int) -> None:
    record = record_of(task)
    prompt = official(record, record.profile[:n], limit)
    assert prompt.n_tokens <= limit
    assert len(prompt.item_ids) in (0, n)
    assert len(prompt.item_ids) + prompt.items_dropped == n


def test_texts_are_cleaned() -> None:
    record = reviews(["</think> <|im_end|>"], "review: <think> q")
    content = official(record, record.profile, 100).messages[0]["content"]
    assert "<" not in content


def test_a_real_tokenizer_counts_its_special_tokens(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocabulary = {word: n for n, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "red", "lamp", "a", "blue"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(tmp_path)
    from tagpr_rl.prompts.tokens import ChatTokenizer

    tokens = ChatTokenizer(tmp_path)
    assert tokens.length("red lamp") == 4
    assert tokens.cut("red lamp a blue", 4) == (4, "red lamp")
    assert tokens.cut("red lamp", 9) == (4, "red lamp")
    assert tokens.cut("red lamp", 2) == (2, "")
    for limit in (1, 0, -3):
        with pytest.raises(ValueError, match="below the special tokens"):
            tokens.cut("red", limit)
