"""The nouns of the project: small frozen dataclasses that travel between packages.

Nothing here imports another module of the package, nor torch, ray, vllm or verl.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class TagprError(Exception):
    """A mistake in the user's input: bad recipe, bad file, bad record.

    The message names the file, record or key, the value, and the remedy. The command line prints it
    without a traceback and exits with code 2. Our own mistakes are asserts or other exceptions.
    """


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """`did you mean 'demo'?` with the known name nearest to `name`; `otherwise` if none is near."""
    names = list(known)
    words = re.split(r"[\W_]+", name.lower())
    short = ("".join(word[:1] for word in words), *words)  # learning_rate is lr, num_steps is steps
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or [own for own in names if own in short]
    return f"did you mean '{near[0]}'?" if near else otherwise


@dataclass(frozen=True, slots=True)
class ProfileItem:
    """One entry of a user's history, as LaMP stores it."""

    id: str
    fields: Mapping[str, str]
    """LaMP's keys for the task, without `id` and `date`: title, abstract, tag, text, score, ..."""
    date: str | None = None
    """Time split only."""


@dataclass(frozen=True, slots=True)
class LampRecord:
    """One LaMP question with its user's profile and, where known, its gold answer."""

    id: str
    task: str
    """LaMP_1, LaMP_2, LaMP_2N, LaMP_3, LaMP_4, LaMP_5, LaMP_6 or LaMP_7."""
    split: str
    """train, dev or test."""
    user_id: str
    """The file's `user_id`; the question id if the file has none (official user split)."""
    input: str
    profile: tuple[ProfileItem, ...]
    gold: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads for one record."""

    record_id: str
    task: str
    user_id: str
    messages: tuple[Mapping[str, str], ...]
    """Chat messages ({"role", "content"}), before the chat template."""
    item_ids: tuple[str, ...]
    """Ids of the profile items that made it into the prompt, in order of appearance."""
    items_dropped: int
    """Retrieved items left out because the prompt was over its limit."""
    question_cut: bool
    """The question alone was over the limit, so its end was cut."""
    n_tokens: int
    """Length after the chat template, in tokens."""


@dataclass(frozen=True, slots=True)
class Step:
    """One tagged step of a thought. `text` is stripped, not empty, and free of markup."""

    tag: str
    text: str


@dataclass(frozen=True, slots=True)
class TaggedTrace:
    """A well-formed response: a tagged thought and an answer (stripped, not empty)."""

    steps: tuple[Step, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class PairRow:
    """A preference pair for PRMU: two responses to one question. `chosen` is right and has the user's own profile."""

    record_id: str
    task: str
    user_id: str
    other_user_id: str
    """Whose profile `rejected` was written with; empty unless kind is "cross_profile" or "user_only"."""
    question: str
    """Without the profile."""
    profile_texts: tuple[str, ...]
    """The profile of `user_id`, best item first."""
    chosen: str
    rejected: str
    kind: str
    """What `rejected` is: one of prmu.training.preferences.KINDS."""


class ParseStatus(StrEnum):
    """Why a response is, or is not, well formed. Only OK carries a trace."""

    OK = "OK"
    NO_THOUGHT = "NO_THOUGHT"  # no <think> where one must open
    TRUNCATED = "TRUNCATED"  # the text ends inside the thought (or inside a step)
    UNCLOSED = "UNCLOSED"  # a step or the thought closes with another element's tag
    UNKNOWN_TAG = "UNKNOWN_TAG"  # markup whose name is not in the schema
    NESTED = "NESTED"  # a step (or <think>) opens inside a step
    TEXT_OUTSIDE = "TEXT_OUTSIDE"  # text before <think>, or between steps
    EMPTY_STEP = "EMPTY_STEP"
    NO_STEPS = "NO_STEPS"  # <think></think>
    NO_ANSWER = "NO_ANSWER"  # nothing after </think>
    MARKUP_IN_ANSWER = "MARKUP_IN_ANSWER"  # a schema tag or think tag after </think>


@dataclass(frozen=True, slots=True)
class Parsed:
    """The parser's verdict on one response."""

    status: ParseStatus
    trace: TaggedTrace | None
    """Present if and only if status is OK."""
    reason: str
    """One sentence for a human; empty when OK."""
    offset: int
    """Character offset in the response where the verdict fell."""


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One official metric on one task."""

    task: str
    name: str
    value: float
    n: int
    n_unparsable: int
    higher_is_better: bool
    low: float
    high: float
    """95 % percentile bootstrap by user."""
    user_macro: float | None = None
    """Mean over users of the metric on each user's questions; None for F1, which needs many questions."""


@dataclass(frozen=True, slots=True)
class StageManifest:
    """What a finished stage says of itself; written last, so that its existence means complete."""

    stage: str
    kind: str
    started: str
    """UTC, ISO 8601"""
    seconds: float
    inputs: Mapping[str, str]
    """Input name -> sha256 of its content."""
    config_sha256: str
    outputs: Mapping[str, str]
    """Relative path -> sha256."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    """The recipe values behind `config_sha256`, so that a change can be named key by key."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON: what the stage took over from the one before (`carried`), questions kept (`filter`), its early end
    (`stopped`)."""
