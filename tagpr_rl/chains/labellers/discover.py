"""Tag discovery: free labels of a sample of chains -> clusters of steps -> a proposed tag schema (all of it ours).

The paper's nine tags came from somewhere; this is a way to such a list for a new domain. Labels group the steps,
and the steps' own words help where two phrases mean one thing ("quote an example", "cite the history"). How many
groups there are is decided by the steps' words alone, since they do not know the labels.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tagpr_rl.chains.client.chat import Generator
from tagpr_rl.chains.labellers.free_label import MAX_TOKENS, content_words, free_labels
from tagpr_rl.chains.labellers.linkage import Floats, Ints, average_linkage, coarsest_cuts, cut, silhouette
from tagpr_rl.chains.labellers.propose import Assigned, fit, label_counts, propose_schema
from tagpr_rl.tags.schema import THINK, TagSchema
from tagpr_rl.types import TagprError

LABEL_PART = 0.3
"""Weight of the labels' cosine; the rest is the cosine of the steps' words."""
LEAST_SHARE = 0.02
"""A group with a smaller share of the labelled steps becomes no tag; a word in fewer steps is no feature."""
MOST_TAGS = 12
MOST_LABELS = 3000
"""Distinct labels that are clustered, the most frequent first: a bound on memory (its square)."""
JUDGED_STEPS = 4000
"""Steps, evenly spread, on which the number of groups is decided: the same bound."""
EXAMPLES = 3

_QUOTED = re.compile(r'"[^"]*"')
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class SampleChain:
    """One chain of the sample: its steps as texts, without tags."""

    task: str
    record_id: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProposedTag:
    """One group of steps that became a tag."""

    name: str
    labels: Mapping[str, int]
    """Free label -> steps with it, most frequent first."""
    steps: int
    share: float
    """Of all steps of the sample, [0, 1]."""
    chain_share: float
    """Of the labelled chains, [0, 1]: those with such a step."""
    examples: tuple[str, ...]
    """Steps near the middle of the group, of different tasks where there are several."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found in a sample."""

    schema: TagSchema
    tags: tuple[ProposedTag, ...]
    """In the schema's order."""
    assigned: tuple[Assigned, ...]
    """For each chain of the sample its steps' tags."""
    steps: int
    """Of the whole sample."""
    coverage: float
    """Share of the steps that are in a proposed tag, [0, 1]."""
    unassigned: Mapping[str, int]
    """Why the others are not -> steps: RARE (their group is too small), or why their chain has no labels."""
    fit: float
    """Share of the labelled chains that meet the whole proposed schema, [0, 1]."""
    separation: Mapping[int, float]
    """Number of tags that was possible -> silhouette of the steps' words under it."""


def discover(
    chains: Sequence[SampleChain], generator: Generator, *, tags: int | None = None, seed: int = 0,
    max_tokens: int = MAX_TOKENS, version: str = "discovered-1",
) -> Discovery:  # fmt: skip
    """Label, group and propose. `tags` fixes the number of tags; None = as the steps' words separate best.
    `max_tokens` is the limit of a reply.

    Deterministic for a deterministic generator. Raises TagprError where nothing could be labelled, or the steps do
    not fall into `tags` groups.
    """
    found = free_labels([chain.steps for chain in chains], generator, seed=seed, max_tokens=max_tokens)
    unassigned = Counter({"RARE": 0})
    where: list[tuple[int, int]] = []
    said: list[str] = []
    for c, (chain, result) in enumerate(zip(chains, found, strict=True)):
        if result.labels is None:
            unassigned[result.reason] += len(chain.steps)
            continue
        where += [(c, s) for s in range(len(chain.steps))]
        said += result.labels
    if not where:
        raise TagprError(f"discover: none of {len(chains)} chains could be labelled; reasons (steps): {+unassigned}")
    texts = [chains[c].steps[s] for c, s in where]
    vectors = _text_vectors(texts)
    group, separation = _groups(said, vectors, tags)
    names = _names(said, group)
    grid: list[list[str | None]] = [[None] * len(chain.steps) for chain in chains]
    for (c, s), g in zip(where, group.tolist(), strict=True):
        grid[c][s] = names[g] if g >= 0 else None
    unassigned["RARE"] = int((group < 0).sum())
    assigned = tuple(tuple(row) for row in grid)
    labelled = [i for i, result in enumerate(found) if result.labels is not None]
    rows = [assigned[i] for i in labelled]
    total = sum(len(chain.steps) for chain in chains)
    proposed = {}
    for g, name in enumerate(names):
        members = np.flatnonzero(group == g)
        proposed[name] = ProposedTag(
            name,
            label_counts([said[i] for i in members]),
            len(members),
            len(members) / total,
            sum(name in row for row in rows) / len(rows),
            _examples(members, vectors, texts, [chains[where[i][0]].task for i in members]),
        )
    schema = propose_schema(rows, {name: _purpose(tag) for name, tag in proposed.items()}, version)
    return Discovery(
        schema,
        tuple(proposed[name] for name in schema.names),
        assigned,
        total,
        sum(tag.steps for tag in proposed.values()) / total,
        dict(unassigned),
        fit([(assigned[i], chains[i].steps) for i in labelled], schema),
        separation,
    )


def as_dict(found: Discovery) -> dict[str, Any]:
    """Everything but the steps' assignment, as plain JSON values."""
    return {
        "schema_sha256": found.schema.sha256,
        "chains": len(found.assigned),
        "steps": found.steps,
        "coverage": found.coverage,
        "unassigned_steps": dict(found.unassigned),
        "fit": found.fit,
        "separation": {str(count): value for count, value in found.separation.items()},
        "tags": [
            {
                "name": tag.name, "steps": tag.steps, "share": tag.share, "chain_share": tag.chain_share,
                "labels": dict(tag.labels), "examples": list(tag.examples),
            }
            for tag in found.tags
        ],
    }  # fmt: skip


@cache
def _stem(word: str) -> str:
    from nltk.stem.porter import PorterStemmer  # on first use: nltk takes a second to import

    return str(PorterStemmer().stem(word))


def _unit_rows(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def _tf_idf(bags: Sequence[Sequence[str]], least: float) -> Floats:
    """[bags, words] unit rows of count * (ln((1 + N) / (1 + n_word)) + 1), for words in at least `least` bags."""
    df = Counter(word for bag in bags for word in set(bag))
    column = {word: i for i, word in enumerate(sorted(word for word, n in df.items() if n >= least))}
    rows = np.zeros((len(bags), len(column)))
    for i, bag in enumerate(bags):
        for word in bag:
            if word in column:
                rows[i, column[word]] += math.log((1 + len(bags)) / (1 + df[word])) + 1
    return _unit_rows(rows)


def _text_vectors(texts: Sequence[str]) -> Floats:
    """[steps, words] of the steps' usual words: quotes are evidence, rare words the subject, not the role."""
    bags = [[_stem(word) for word in _WORD.findall(_QUOTED.sub(" ", text).casefold())] for text in texts]
    return _tf_idf(bags, max(2, LEAST_SHARE * len(texts)))


def _groups(said: Sequence[str], vectors: Floats, tags: int | None) -> tuple[Ints, dict[int, float]]:
    """[steps] group of each step, -1 where it is too small to be a tag; and the silhouette of each number of tags."""
    stems = [tuple(map(_stem, content_words(label))) for label in said]
    counts = Counter(stems)
    keys = sorted(sorted(counts), key=lambda key: -counts[key])[:MOST_LABELS]
    index = {key: i for i, key in enumerate(keys)}
    of_step = np.array([index.get(stem, -1) for stem in stems], dtype=np.int64)
    weight = np.array([counts[key] for key in keys], dtype=np.float64)
    context = np.zeros((len(keys), vectors.shape[1]))
    np.add.at(context, of_step[of_step >= 0], vectors[of_step >= 0])
    context, label = _unit_rows(context), _tf_idf(keys, 1)
    distance = np.clip(1 - LABEL_PART * label @ label.T - (1 - LABEL_PART) * context @ context.T, 0, None)
    merges = average_linkage((distance + distance.T) / 2, weight)

    judged = np.unique(np.linspace(0, len(said) - 1, JUDGED_STEPS).astype(np.int64))
    between = np.clip(1 - vectors[judged] @ vectors[judged].T, 0, None)
    found: dict[int, tuple[float, Ints]] = {}
    least = LEAST_SHARE * len(said)
    for n, clusters in sorted(coarsest_cuts(merges, weight, least).items()):
        if 1 <= n <= (MOST_TAGS if tags is None else tags):
            large = _large(cut(merges, len(keys), clusters), weight, least)
            group = np.where(of_step >= 0, large[of_step], -1)
            inside = group[judged] >= 0
            score = silhouette(between[np.ix_(inside, inside)], group[judged][inside]) if inside.any() else 0.0
            found[n] = (score, group)
    separation = {n: score for n, (score, _) in sorted(found.items())}
    if tags is not None and tags not in found:
        raise TagprError(f"discover: the steps do not fall into {tags} groups; possible: {', '.join(map(str, found))}")
    best = tags if tags is not None else max(found, key=lambda n: (found[n][0], -n), default=None)
    if best is None:
        raise TagprError("discover: no group of steps is large enough to be a tag; take a larger sample")
    return found[best][1], separation


def _large(cluster: Ints, weight: Floats, least: float) -> Ints:
    """[labels] cluster of each label, renumbered over those with at least `least` steps; -1 elsewhere."""
    large = np.bincount(cluster, weights=weight) >= least
    number: Ints = np.where(large, np.cumsum(large) - 1, -1)
    return number[cluster]


def _names(said: Sequence[str], group: Ints) -> list[str]:
    """A valid, distinct tag name for each group: its most frequent label."""
    names: list[str] = []
    for g in range(int(group.max()) + 1):
        base = tag_name(_main_label([said[i] for i in np.flatnonzero(group == g)])) or "step"
        name, number = base, 1
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names.append(name)
    return names


def _main_label(labels: Sequence[str]) -> str:
    """The most frequent label up to inflection; of its forms the most frequent, then the shortest."""
    stems = {label: tuple(map(_stem, content_words(label))) for label in set(labels)}
    counts = Counter(labels)
    groups = Counter(stems[label] for label in labels)
    best = min(groups, key=lambda key: (-groups[key], key))
    return min((x for x in counts if stems[x] == best), key=lambda x: (-counts[x], len(x), x))


def tag_name(label: str) -> str:
    """A label as a tag's name (schema.NAME_PATTERN): ASCII letters and _, at most four words; "" if none is left."""
    words = [unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode() for word in content_words(label)]
    name = "_".join(re.sub(r"[^A-Za-z]", "", word) for word in words[:4]).strip("_")
    return f"{name}_step" if name.lower() == THINK else name


def _purpose(tag: ProposedTag) -> str:
    """One sentence from the most frequent labels: a start for the user, who knows the domain."""
    main, *others = list(tag.labels)[:4]
    return f"{main.capitalize()}." + (f" Also called: {', '.join(others)}." if others else "")


def _examples(members: Ints, vectors: Floats, texts: Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    """The steps nearest to the middle of their group, distinct, tasks taking turns."""
    middle = vectors[members].mean(axis=0)
    order = np.argsort(-(vectors[members] @ middle), kind="stable")
    chosen: dict[str, None] = {}
    seen: Counter[str] = Counter()
    for least in range(EXAMPLES):
        for i in order.tolist():
            text = texts[members[i]]
            if len(chosen) < EXAMPLES and seen[tasks[i]] <= least and text not in chosen:
                chosen[text] = None
                seen[tasks[i]] += 1
    return tuple(chosen)
