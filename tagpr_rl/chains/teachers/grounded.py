"""A rule-based teacher for real LaMP questions that knows the gold and tells in hindsight how the history leads to it.

Every statement is a fact of the items shown, of the user's whole history, or of the question: the labels of near
items, the counts of labels, the usual form of the user's titles, words that the question shares with items of the
answer's label, words that the headline takes over. A chain is three short steps. What can be said without the gold
comes first, the step that leads to it last. With a profile that is not the user's, or where the question is asked
without one for comparison, the answer is the heuristic teacher's: what that profile suggests.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from statistics import median_low

from tagpr_rl.chains.client.chat import Reply
from tagpr_rl.chains.teachers.heuristic import chain_text, heuristic_chain, quote, words_of
from tagpr_rl.chains.teachers.interface import TeacherRequest
from tagpr_rl.data.tasks import TASKS, TaskSpec
from tagpr_rl.types import LampRecord

CUES, PLAN, SHOWN, TITLE_WORDS = 2, 5, 4, 5
"""Most cue words, words of a headline's plan, labels of near items, and words of a quoted title."""
_VERBS = ("prefers", "likes", "favours")
_MARKS = (":", "?", "!", "'", ",", "$")
_TOKEN = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


class GroundedTeacher:
    """Deterministic. `seed`, record and sample choose the wording."""

    name = "grounded"
    prompts: Mapping[str, str] = {}

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def generate(self, requests: Sequence[TeacherRequest]) -> list[Reply]:
        """One chain per request, for any task of `data.tasks.TASKS`."""
        return [Reply(self._one(request)) for request in requests]

    def _one(self, request: TeacherRequest) -> str:
        record = request.record
        items = [item.fields for item in request.items]
        hindsight = not request.foreign and record.gold is not None
        answer = str(record.gold) if hindsight else heuristic_chain(record, items)[1]
        rng = Random(f"grounded/{self._seed}/{record.task}/{record.id}/{request.sample}")
        history = [item.fields for item in record.profile] if items else []
        spec = TASKS[record.task]
        if spec.name == "LaMP_1":
            steps = _reference_steps(record, items, answer, rng)
        elif spec.kind == "generation":
            steps = _text_steps(spec, record, items, history, answer, rng)
        else:
            steps = _label_steps(spec, record, items, history, answer, rng)
        return chain_text(steps, answer)


def _label_steps(
    spec: TaskSpec,
    record: LampRecord,
    items: Sequence[Mapping[str, str]],
    history: Sequence[Mapping[str, str]],
    answer: str,
    rng: Random,
) -> list[str]:
    """Classification and rating: near labels, counts over the history, and what the question shares with the label."""
    key = str(spec.label_key)
    if not history:
        return [*_nothing(rng), _lead(answer, _own_words(spec, record), rng)]
    near = _counted(Counter(fields[key] for fields in items[:SHOWN]))
    counts = Counter(fields[key] for fields in history)
    top = Counter(dict(counts.most_common(2))) | Counter({answer: counts[answer]})
    return [
        rng.choice((f"near item: {near}", f"like item: {near}", f"near in history: {near}")),
        f"user {rng.choice(_VERBS)} {_counted(top)} of {len(history)}",
        _lead(answer, shared_cues(spec, record, history, answer) or _own_words(spec, record), rng),
    ]


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{label} {n}" for label, n in counts.most_common())


def _lead(answer: str, cues: Sequence[str], rng: Random) -> str:
    """The step from cue words to a label."""
    if not cues:
        return f"so {answer} fits"
    quoted = f'"{", ".join(cues)}"'
    return rng.choice((f"so {quoted}: {answer}", f"so {quoted} point to {answer}", f"so {answer}, by {quoted}"))


def shared_cues(
    spec: TaskSpec, record: LampRecord, history: Sequence[Mapping[str, str]], label: str
) -> tuple[str, ...]:
    """Content words of the question, in its order, that items with this label have relatively more often than others.

    At most CUES, those with the largest difference of the two shares of items.
    """
    key = str(spec.label_key)
    bags = [(words_of(" ".join(v for k, v in fields.items() if k != key)), fields[key] == label) for fields in history]
    n_in, n_out = sum(own for _, own in bags), sum(not own for _, own in bags)
    if not n_in:
        return ()
    lift = {}
    for word in words_of(spec.query(record)):
        inside = sum(own and word in bag for bag, own in bags) / n_in
        outside = sum(not own and word in bag for bag, own in bags) / max(1, n_out)
        if inside > outside and len(word) > 2:
            lift[word] = inside - outside
    best = set(sorted(lift, key=lambda word: -lift[word])[:CUES])
    return tuple(word for word in lift if word in best)


def _own_words(spec: TaskSpec, record: LampRecord) -> tuple[str, ...]:
    """The longest content words of the question, in its order: what is left if the history shares none."""
    words = [word for word in words_of(spec.query(record)) if len(word) > 3]
    best = set(sorted(words, key=lambda word: -len(word))[:CUES])
    return tuple(word for word in words if word in best)


def _text_steps(
    spec: TaskSpec,
    record: LampRecord,
    items: Sequence[Mapping[str, str]],
    history: Sequence[Mapping[str, str]],
    answer: str,
    rng: Random,
) -> list[str]:
    """Titles and tweets: a near one, the usual form, and the words that the answer takes from the question."""
    key = str(spec.label_key)
    plan = taken_words(answer, [spec.query(record), *(fields[key] for fields in history)])
    use = f'so use "{", ".join(plan)}"' if plan else "so use words of its own"
    if not history:
        return [*_nothing(rng), use]
    texts = [fields[key] for fields in history]
    example = " ".join(items[0][key].split()[:TITLE_WORDS])
    kind = "tweet" if spec.name == "LaMP_7" else "title"
    return [
        rng.choice((f"near {kind} item {quote(example)}", f"user wrote {quote(example)}")),
        f"user {rng.choice(_VERBS)} {usual_form(texts)}",
        use,
    ]


def usual_form(texts: Sequence[str]) -> str:
    """The median length in words, the case, and the mark that a third or more of the texts have, most frequent first.

    >>> usual_form(["Why We Wait: A Story", "Run: A Race", "Sit"])
    '3 words, Title Case, with :'
    """
    n_words = median_low(len(text.split()) for text in texts)
    words = [word for text in texts for word in text.split() if word[0].isalpha()]
    capital = sum(word[0].isupper() for word in words) / max(1, len(words))
    case = "Title Case" if capital > 0.6 else "sentence case"
    counts = {mark: sum(mark in text for text in texts) for mark in _MARKS}
    marks = [mark for mark in sorted(counts, key=lambda mark: -counts[mark]) if 3 * counts[mark] >= len(texts)]
    return f"{n_words} words, {case}" + (f", with {marks[0]}" if marks else "")


def taken_words(answer: str, sources: Sequence[str]) -> tuple[str, ...]:
    """Content words of the answer, in its order and spelling, that stand in one of `sources`; at most PLAN."""
    known = set().union(*(words_of(source) for source in sources))
    words = dict.fromkeys(word for word in _TOKEN.findall(answer) if set(words_of(word)) & known)
    return tuple(words)[:PLAN]


def _reference_steps(record: LampRecord, items: Sequence[Mapping[str, str]], answer: str, rng: Random) -> list[str]:
    """LaMP_1: the user's nearest paper, and the words that it shares with the reference chosen."""
    _, *references = record.input.split('"')[1::2][:3]
    chosen = words_of(references[int(answer == "[2]")])
    if not items:
        return [*_nothing(rng), _lead(answer, [*chosen][:CUES], rng)]
    shared = [word for word in chosen if any(word in words_of(" ".join(f.values())) for f in items)][:CUES]
    return [
        f"user wrote {quote(' '.join(items[0]['title'].split()[:TITLE_WORDS]))}",
        f'user {rng.choice(_VERBS)} "{", ".join(shared)}"' if shared else "no preference shows",
        f"so {answer} is nearer" if shared else f"so {answer} by its own words",
    ]


def _nothing(rng: Random) -> list[str]:
    return [
        rng.choice(("the history has no item", "no item is in the history")),
        rng.choice(("no preference is known", "the user has no known preference")),
    ]
