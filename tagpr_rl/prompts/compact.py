"""The compact prompt, for small models and short budgets: about a third of the `reasoning` prompt.

It has one short sentence in place of the tag manual, which SFT teaches; the user's labels counted over the *whole*
history; the nearest items, each cut to some words, with their labels; and the question's text, cut too. LaMP's list of
all answers is left out, so a model that was never trained on the task cannot use this prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median_low

from tagpr_rl.config import CompactBlock
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.prompts.prompt import (
    NO_PROFILE,
    PROFILE_HEADER,
    QUESTION_HEADER,
    CountTokens,
    Messages,
    clean,
    fit_prompt,
    user_turn,
    with_instruction,
)
from tagpr_rl.types import LampRecord, ProfileItem, Prompt

INSTRUCTIONS: Mapping[str, str] = {
    "reasoning": "Think about this user in tagged steps, then answer as the user would.",
    "direct": "Answer as this user would.",
}
"""Style -> its instruction."""

QUESTIONS: Mapping[str, str] = {
    "LaMP_2": "The tag of this movie:",
    "LaMP_2N": "The category of this article:",
    "LaMP_3": "The score, 1 to 5, of this review:",
    "LaMP_4": "The headline of this article:",
    "LaMP_5": "The title of this abstract:",
    "LaMP_6": "The subject of this email:",
    "LaMP_7": "This tweet in other words:",
}
"""Task -> what stands before the question's text. LaMP_1 keeps its input, whose two references must both be seen."""

_PLURALS: Mapping[str, str] = {"category": "categories"}


def build_compact_prompt(
    record: LampRecord,
    items: Sequence[ProfileItem],
    *,
    style: str,
    block: CompactBlock,
    max_tokens: int,
    count_tokens: CountTokens,
) -> Prompt:
    """The compact prompt of one record, of style reasoning or direct. `items`: the retrieved ones, best first.

    All texts of the record pass `clean`. Items, then the end of the question, are left out to meet `max_tokens`, as in
    `build_prompt`. Raises TagprError if that is not enough, or if the input has no part that is the question.
    """
    lines = [clean(item_line(record.task, item, block.item_words)) for item in items]
    facts = [clean(fact)] if (fact := history_fact(record, block.labels)) else []
    head = QUESTIONS.get(record.task)
    if head is None:
        head, text = TASKS[record.task].input_head(record.input), record.input
    else:
        text = f"{head} {first_words(TASKS[record.task].query(record), block.question_words)}"

    def messages(kept: int, question: str) -> Messages:
        shown = [PROFILE_HEADER, *lines[:kept]] if kept else [] if facts else [NO_PROFILE]
        content = clean("\n".join([*facts, *shown, QUESTION_HEADER, question]))
        return user_turn(f"{INSTRUCTIONS[style]}\n{content}")

    return fit_prompt(
        record,
        items,
        clean(head),
        clean(text),
        messages,
        style="compact",
        max_tokens=max_tokens,
        count_tokens=count_tokens,
    )


def compact_direct(messages: Sequence[Mapping[str, str]]) -> Messages:
    """The messages of a compact `reasoning` prompt as `direct` ones. TagprError for any other prompt."""
    return with_instruction(
        messages, INSTRUCTIONS["reasoning"], INSTRUCTIONS["direct"], "the compact instruction: it has another style"
    )


def history_fact(record: LampRecord, most: int) -> str:
    """One line about the whole history: the `most` most frequent labels with their counts, or the usual length of the
    user's texts in words; "" without a profile, and for LaMP_1, whose items have no label.

    Equal counts keep the order in which the labels first occur.
    """
    spec = TASKS[record.task]
    key = spec.label_key
    if key is None or not record.profile:
        return ""
    values = [item.fields[key] for item in record.profile]
    name = _PLURALS.get(key, f"{key}s")
    if spec.kind == "generation":
        return f"The user's {name} have about {median_low(len(value.split()) for value in values)} words."
    counts = ", ".join(f"{value} ({n})" for value, n in Counter(values).most_common(most))
    return f"The user's {name}: {counts}."


def item_line(task: str, item: ProfileItem, words: int) -> str:
    """An item on one line: the first `words` words of its text in quotation marks, then its label or title."""
    spec = TASKS[task]
    key = spec.label_key
    shown = [name for name in spec.item_keys if name != key] or [str(key)]
    if key is None:  # LaMP_1: the title, as in LaMP's template
        shown = shown[:1]
    text = first_words(" ".join(item.fields[name] for name in shown), words)
    if key is None or key in shown:
        return f'"{text}"'
    label = " ".join(item.fields[key].split())
    return f'"{text}": "{label}"' if spec.kind == "generation" else f'"{text}": {label}'


def first_words(text: str, count: int) -> str:
    """The first `count` words on one line, followed by "..." if there are more."""
    words = text.split()
    return " ".join(words[:count]) + ("..." if len(words) > count else "")
