"""The facts of each LaMP task: item keys, labels, templates and the query that retrieval uses.

Source: LaMP-Benchmark/LaMP at 38c9d4d, `LaMP/prompts/prompts.py` and `LaMP/prompts/utils.py` (templates,
query rules), `eval/evaluation.py` (metrics). The templates are LaMP's strings byte for byte, because published
numbers depend on them; the code is new.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tagpr_rl.types import LampRecord, ProfileItem, TagprError

Kind = Literal["classification", "rating", "generation"]

MOVIE_TAGS = (
    "sci-fi",
    "based on a book",
    "comedy",
    "action",
    "twist ending",
    "dystopia",
    "dark comedy",
    "classic",
    "psychology",
    "fantasy",
    "romance",
    "thought-provoking",
    "social commentary",
    "violence",
    "true story",
)
NEWS_CATEGORIES = (
    "travel",
    "education",
    "parents",
    "style & beauty",
    "entertainment",
    "food & drink",
    "science & technology",
    "business",
    "sports",
    "healthy living",
    "women",
    "politics",
    "crime",
    "culture & arts",
    "religion",
)


def literals(template: str) -> tuple[str, ...]:
    """The constant parts of a `str.format` template, in order, as written (not stripped).

    >>> literals('"{title}" is a title for "{abstract}" ')
    ('"', '" is a title for "', '" ')
    """
    return tuple(text for text, _, _, _ in string.Formatter().parse(template) if text)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """The fixed facts of one LaMP task."""

    name: str
    kind: Kind
    item_keys: tuple[str, ...]
    """Keys of a profile item besides `id` and the time split's `date`."""
    labels: tuple[str, ...]
    """The closed list of answers, in LaMP's order; empty for generation."""
    label_key: str | None
    """The item key that holds the user's own label or title; None if items have no such key (LaMP_1)."""
    input_template: str
    """How LaMP builds `input`. The blanks: title, first, second (LaMP_1), text (all others)."""
    query_marker: str | None
    """The retrieval query is the text after the first such marker; None: the quoted candidates (LaMP_1)."""
    text_keys: tuple[str, ...]
    """Item keys joined by a space to make the text that retrieval ranks."""
    item_template: str
    """How an item is written into a prompt."""
    assembly: str
    """How items and question are joined: `str.format` with {items} and {input}; "" = LaMP_1's insertion."""

    def make_input(self, **texts: str) -> str:
        """LaMP's `input` for the given blanks (`text=`, or `title=, first=, second=` for LaMP_1)."""
        return self.input_template.format(**texts)

    def input_head(self, text: str) -> str:
        """The constant beginning of an `input`: up to and with the marker (LaMP_1: up to the first quote)."""
        marker = '"' if self.query_marker is None else self.query_marker
        at = text.find(marker)
        return "" if at < 0 else text[: at + len(marker)]

    def query(self, record: LampRecord) -> str:
        """The text that retrieval compares with the profile.

        Raises TagprError when the input has no such part (upstream fails there with a type error).
        """
        if self.query_marker is None:
            quoted = record.input.split('"')[1::2]
            if len(quoted) < 3:
                raise TagprError(
                    f"{self.name} record {record.id!r}: input has {len(quoted)} quoted texts, but the title "
                    f"and two candidate references are needed; check the file against {self.input_template!r}"
                )
            return f"{quoted[1]} {quoted[2]}"
        at = record.input.find(self.query_marker)
        if at < 0:
            raise TagprError(
                f"{self.name} record {record.id!r}: input has no {self.query_marker!r}, after which the "
                f"retrieval query stands; check the file against {self.input_template!r}, or set retrieval "
                "to random or none"
            )
        return record.input[at + len(self.query_marker) :].strip()

    def require_gold(self, gold: str, where: str) -> None:
        """TagprError, beginning with `where`, for a gold that no answer to this task can equal."""
        text = gold.strip()
        if not text:
            raise TagprError(f"{where} is empty; no answer can be right")
        if self.labels and text not in self.labels:
            fitting = [spec.name for spec in TASKS.values() if text in spec.labels]
            hint = f"; it is one of {fitting[0]}'s, so give --task {fitting[0]}" if fitting else ""
            raise TagprError(
                f"{where} is {gold[:80]!r}, not one of {self.name}'s answers: {', '.join(self.labels)}{hint}"
            )

    def item_text(self, item: ProfileItem) -> str:
        """The text of an item that retrieval ranks."""
        return " ".join(item.fields[key] for key in self.text_keys)

    def item_line(self, fields: Mapping[str, str]) -> str:
        """The item as LaMP writes it into a prompt."""
        return self.item_template.format(**fields)

    def assemble(self, item_lines: list[str], text: str) -> str:
        """LaMP's prompt: items joined by `, and `, then the input. Without items it is the input alone."""
        if not item_lines:
            return text
        items = ", and ".join(item_lines)
        if self.assembly:
            return self.assembly.format(items=items, input=text)
        at = text.find("title")
        if at < 0:
            return text
        cut = at + len("title")
        return f"{text[:cut]}, and {items}{text[cut:]}"


_PLAIN = "{items}. {input}"

TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="LaMP_1",
            kind="classification",
            item_keys=("title", "abstract"),
            labels=("[1]", "[2]"),
            label_key=None,
            input_template='For an author who has written the paper with the title "{title}", '
            "which reference is related? Just answer with [1] or [2] without explanation. "
            '[1]: "{first}" [2]: "{second}"',
            query_marker=None,
            text_keys=("title", "abstract"),
            item_template='"{title}"',
            assembly="",
        ),
        TaskSpec(
            name="LaMP_2",
            kind="classification",
            item_keys=("tag", "description"),
            labels=MOVIE_TAGS,
            label_key="tag",
            input_template="Which tag does this movie relate to among the following tags? Just answer "
            "with the tag name without further explanation. "
            f"tags: [{', '.join(MOVIE_TAGS)}] description: {{text}}",
            query_marker="description:",
            text_keys=("description",),
            item_template='the tag for the movie: "{description}" is "{tag}" ',
            assembly=_PLAIN,
        ),
        TaskSpec(
            name="LaMP_2N",
            kind="classification",
            item_keys=("title", "text", "category"),
            labels=NEWS_CATEGORIES,
            label_key="category",
            input_template="Which category does this article relate to among the following categories? Just "
            "answer with the category name without further explanation. categories: "
            f"[{', '.join(NEWS_CATEGORIES)}] article: {{text}}",
            query_marker="article:",
            text_keys=("title", "text"),
            item_template='the category for the article: "{text}" is "{category}" ',
            assembly=_PLAIN,
        ),
        TaskSpec(
            name="LaMP_3",
            kind="rating",
            item_keys=("text", "score"),
            labels=("1", "2", "3", "4", "5"),
            label_key="score",
            input_template="What is the score of the following review on a scale of 1 to 5? just answer with "
            "1, 2, 3, 4, or 5 without further explanation. review: {text}",
            query_marker="review:",
            text_keys=("text",),
            item_template='{score} is the score for "{text}" ',
            assembly=_PLAIN,
        ),
        TaskSpec(
            name="LaMP_4",
            kind="generation",
            item_keys=("title", "text"),
            labels=(),
            label_key="title",
            input_template="Generate a headline for the following article: {text}",
            query_marker="article:",
            text_keys=("title", "text"),
            item_template='"{title}" is the title for "{text}" ',
            assembly=_PLAIN,
        ),
        TaskSpec(
            name="LaMP_5",
            kind="generation",
            item_keys=("title", "abstract"),
            labels=(),
            label_key="title",
            input_template="Generate a title for the following abstract of a paper: {text}",
            query_marker="paper:",
            text_keys=("title", "abstract"),
            item_template='"{title}" is a title for "{abstract}" ',
            assembly="{items}. Following the given patterns {input}",
        ),
        TaskSpec(
            name="LaMP_6",
            kind="generation",
            item_keys=("title", "text"),
            labels=(),
            label_key="title",
            input_template="Generate a subject for the following email: {text}",
            query_marker=":",
            text_keys=("text",),
            item_template='"{title}" is the title for "{text}" ',
            assembly=_PLAIN,
        ),
        TaskSpec(
            name="LaMP_7",
            kind="generation",
            item_keys=("text",),
            labels=(),
            label_key="text",
            input_template="Paraphrase the following tweet without any explanation before or after it: {text}",
            query_marker=":",
            text_keys=("text",),
            item_template='"{text}" ',
            assembly="{items} are written by a person. Following the given patterns {input}",
        ),
    )
}


def task_name(name: str) -> str:
    """The evaluation spelling of a task (`LaMP_2`) for either spelling (`LaMP-2`). TagprError if unknown."""
    canonical = name.replace("-", "_")
    if canonical == "LaMP_2_old":  # the training code's name for the news task
        canonical = "LaMP_2N"
    if canonical not in TASKS:
        raise TagprError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return canonical
