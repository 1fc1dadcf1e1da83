"""LaMP's published prompt with its token budget, as `LaMP/prompts/prompts.py` at 38c9d4d builds it.

The profile part may have `max_length - min(tokens of the input, int(0.6 * max_length))` tokens. The items share it
equally: each item's text is cut to its share, and tokens that an item leaves unused go to the next. If there is no
room (or no item), the question stands alone. One difference: the assembled text is cut to `max_length` here; upstream
leaves that to the tokenizer of the training data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tagpr_rl.data.tasks import TASKS, task_name
from tagpr_rl.types import LampRecord, ProfileItem


class Tokens(Protocol):
    """The two functions of a tokenizer that the budget needs."""

    def length(self, text: str) -> int:
        """Tokens of `text`, special tokens included, as `len(tokenizer(text)["input_ids"])`."""

    def cut(self, text: str, limit: int) -> tuple[int, str]:
        """(tokens kept, their text) of the first `limit` tokens, special tokens counted but not shown.

        ValueError if `limit` is below the number of special tokens that every text gets.
        """


@dataclass(frozen=True, slots=True)
class _Budget:
    """The constants of one task's `create_..._prompt`."""

    cut_key: str
    """The item key whose text is cut."""
    around: str
    """The rest of the item, whose tokens are taken off its share; upstream's wording with its blanks."""
    reserved: str = ""
    """Text whose tokens are taken off the profile's whole budget."""
    opening: int = 1
    """Tokens taken off for the full stop after the items."""


_BUDGETS: Mapping[str, _Budget] = {
    "LaMP_1": _Budget("title", "", opening=0),
    "LaMP_2": _Budget("description", 'the tag for the movie: " " is "{tag}" '),
    "LaMP_2N": _Budget("text", 'the category for the article: " " is "{category}" '),
    "LaMP_3": _Budget("text", '{score} is the score for " " '),
    "LaMP_4": _Budget("text", '"{title}" is the title for " " '),
    # "is a title" without "for": upstream's measure, not its item.
    "LaMP_5": _Budget("abstract", '"{title}" is a title " " ', "Following the given patterns"),
    "LaMP_6": _Budget("text", '"{title}" is the title for " " '),
    "LaMP_7": _Budget("text", '"" ', "are written by user. Following the given patterns"),
}
_QUOTES = 2
"""Tokens that LaMP_1 takes off each item for its quotation marks, in place of `around`."""


@dataclass(frozen=True, slots=True)
class OfficialText:
    """One assembled prompt."""

    text: str
    n_items: int
    """Items in the text: all of them or none."""
    question_cut: bool
    """Whether the end was cut because the whole was over `max_length`."""


def official_text(record: LampRecord, items: Sequence[ProfileItem], max_length: int, tokens: Tokens) -> OfficialText:
    """LaMP's prompt of `record` with `items`, at most `max_length` tokens long."""
    n_input = tokens.length(record.input)
    text, n_items = record.input, 0
    factor = 0.6
    while items and factor >= 0:  # upstream's loop, floats included: .6, .5, .4, .3, .2, .1, about 0
        room = max_length - min(n_input, int(factor * max_length))
        try:
            text, n_items = _assemble(record, items, room, tokens), len(items)
            break
        except ValueError:
            factor -= 0.1
    if tokens.length(text) <= max_length:
        return OfficialText(text, n_items, False)
    return OfficialText(tokens.cut(text, max_length)[1], n_items, True)


def _assemble(record: LampRecord, items: Sequence[ProfileItem], room: int, tokens: Tokens) -> str:
    """The text with all items. ValueError if an item's share is below what it needs around its text."""
    spec, budget = TASKS[task_name(record.task)], _BUDGETS[task_name(record.task)]
    reserved = tokens.length(budget.reserved) if budget.reserved else 0
    share = (room - budget.opening - 2 * (len(items) - 1) - reserved) // len(items)
    saved, lines = 0, []
    for item in items:
        around = tokens.length(budget.around.format(**item.fields)) if budget.around else _QUOTES
        n_kept, kept = tokens.cut(item.fields[budget.cut_key], share + saved - around)
        saved += share - n_kept - around
        lines.append(spec.item_line({**item.fields, budget.cut_key: kept}))
    return spec.assemble(lines, record.input)
