"""Tag discovery: proposes a tag schema from free labels of a sample of chains.

The paper gives nine tags and does not say how they were found; this finds such a list for a new domain. The labels
group the steps. The steps' own words help if two labels mean the same ("quote an example", "cite the history"). The
steps' words alone decide the number of groups, because they are independent of the labels.
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
"""Weight of the labels' cosine similarity. The rest is the weight of the similarity of the steps' words."""
LEAST_SHARE = 0.02
"""A group with a smaller share of the labelled steps is no tag, and a word in a smaller share is no feature."""
MOST_TAGS = 12
MOST_LABELS = 3000
"""Number of distinct labels that are clustered, the most frequent ones. Memory grows with its square."""
JUDGED_STEPS = 4000
"""Number of evenly spread steps that decide the number of groups. Memory grows with its square."""
EXAMPLES = 3

_QUOTED = re.compile(r'"[^"]*"')
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class SampleChain:
    """One chain of the sample: the texts of its steps, without tags."""

    task: str
    record_id: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProposedTag:
    """One group of steps that became a tag."""

    name: str
    labels: Mapping[str, int]
    """Free label -> number of steps with it, most frequent first."""
    steps: int
    share: float
    """Share of all steps of the sample, in [0, 1]."""
    chain_share: float
    """Share of the labelled chains with such a step, in [0, 1]."""
    examples: tuple[str, ...]
    """Steps near the middle of the group, from different tasks if the group has several."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """The result of `discover` for a sample."""

    schema: TagSchema
    tags: tuple[ProposedTag, ...]
    """In the schema's order."""
    assigned: tuple[Assigned, ...]
    """For each chain of the sample the tags of its steps."""
    steps: int
    """Number of steps in the sample."""
    coverage: float
    """Share of the steps that have a proposed tag, in [0, 1]."""
    unassigned: Mapping[str, int]
    """Reason -> number of steps without a tag. RARE: the group is too small. Otherwise why the chain has no labels."""
    fit: float
    """Share of the labelled chains that satisfy the whole proposed schema, in [0, 1]."""
    separation: Mapping[int, float]
    """Possible number of tags -> silhouette of the steps' words with that number."""


def discover(
    chains: Sequence[SampleChain], generator: Generator, *, tags: int | None = None, seed: int = 0,
    max_tokens: int = MAX_TOKENS, version: str = "discovered-1",
) -> Discovery:  # fmt: skip
    """Label the steps of the chains, group them, and propose a tag schema.

    Args:
        tags: number of tags; None = the number that separates the steps' words best.
        max_tokens: token limit of a reply.

    Deterministic if the generator is. TagprError if no chain could be labelled, or the steps do not form `tags` groups.
    """
    results = free_labels([chain.steps for chain in chains], generator, seed=seed, max_tokens=max_tokens)
    unassigned = Counter({"RARE": 0})
    where: list[tuple[int, int]] = []
    labels: list[str] = []
    for c, (chain, result) in enumerate(zip(chains, results, strict=True)):
        if result.labels is None:
            unassigned[result.reason] += len(chain.steps)
            continue
        where += [(c, s) for s in range(len(chain.steps))]
        labels += result.labels
    if not where:
        raise TagprError(f"discover: none of {len(chains)} chains could be labelled; reasons (steps): {+unassigned}")
    texts = [chains[c].steps[s] for c, s in where]
    vectors = _text_vectors(texts)
    group, separation = _groups(labels, vectors, tags)
    names = _names(labels, group)
    grid: list[list[str | None]] = [[None] * len(chain.steps) for chain in chains]
    for (c, s), g in zip(where, group.tolist(), strict=True):
        grid[c][s] = names[g] if g >= 0 else None
    unassigned["RARE"] = int((group < 0).sum())
    assigned = tuple(tuple(row) for row in grid)
    labelled = [i for i, result in enumerate(results) if result.labels is not None]
    rows = [assigned[i] for i in labelled]
    total = sum(len(chain.steps) for chain in chains)
    proposed = {}
    for g, name in enumerate(names):
        members = np.flatnonzero(group == g)
        proposed[name] = ProposedTag(
            name,
            label_counts([labels[i] for i in members]),
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


def as_dict(discovery: Discovery) -> dict[str, Any]:
    """The discovery as JSON values, without the tags of the single steps."""
    return {
        "schema_sha256": discovery.schema.sha256,
        "chains": len(discovery.assigned),
        "steps": discovery.steps,
        "coverage": discovery.coverage,
        "unassigned_steps": dict(discovery.unassigned),
        "fit": discovery.fit,
        "separation": {str(count): value for count, value in discovery.separation.items()},
        "tags": [
            {
                "name": tag.name, "steps": tag.steps, "share": tag.share, "chain_share": tag.chain_share,
                "labels": dict(tag.labels), "examples": list(tag.examples),
            }
            for tag in discovery.tags
        ],
    }  # fmt: skip


@cache
def _stem(word: str) -> str:
    from nltk.stem.porter import PorterStemmer  # on first use: nltk takes a second to import

    return str(PorterStemmer().stem(word))


def _unit_rows(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = rows / np.where(norms > 0, norms, 1)
    return unit


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
    """[steps, words] of the steps' frequent words. Quotes and rare words say what a step is about, not what it does."""
    bags = [[_stem(word) for word in _WORD.findall(_QUOTED.sub(" ", text).casefold())] for text in texts]
    return _tf_idf(bags, max(2, LEAST_SHARE * len(texts)))


def _groups(labels: Sequence[str], vectors: Floats, tags: int | None) -> tuple[Ints, dict[int, float]]:
    """[steps] group of each step, -1 for groups too small to be a tag; and number of tags -> silhouette."""
    stems = [tuple(map(_stem, content_words(label))) for label in labels]
    counts = Counter(stems)
    keys = sorted(sorted(counts), key=lambda key: -counts[key])[:MOST_LABELS]
    index = {key: i for i, key in enumerate(keys)}
    of_step = np.array([index.get(stem, -1) for stem in stems], dtype=np.int64)
    weight = np.array([counts[key] for key in keys], dtype=np.float64)
    context = np.zeros((len(keys), vectors.shape[1]))
    np.add.at(context, of_step[of_step >= 0], vectors[of_step >= 0])
    context, own_words = _unit_rows(context), _tf_idf(keys, 1)
    distance = np.clip(1 - LABEL_PART * own_words @ own_words.T - (1 - LABEL_PART) * context @ context.T, 0, None)
    merges = average_linkage((distance + distance.T) / 2, weight)

    judged = np.unique(np.linspace(0, len(labels) - 1, JUDGED_STEPS).astype(np.int64))
    between = np.clip(1 - vectors[judged] @ vectors[judged].T, 0, None)
    groupings: dict[int, tuple[float, Ints]] = {}
    least = LEAST_SHARE * len(labels)
    for n, clusters in sorted(coarsest_cuts(merges, weight, least).items()):
        if 1 <= n <= (MOST_TAGS if tags is None else tags):
            large = _large(cut(merges, len(keys), clusters), weight, least)
            group = np.where(of_step >= 0, large[of_step], -1)
            inside = group[judged] >= 0
            score = silhouette(between[np.ix_(inside, inside)], group[judged][inside]) if inside.any() else 0.0
            groupings[n] = (score, group)
    separation = {n: score for n, (score, _) in sorted(groupings.items())}
    if tags is not None and tags not in groupings:
        raise TagprError(
            f"discover: the steps do not fall into {tags} groups; possible: {', '.join(map(str, groupings))}"
        )
    best = tags if tags is not None else max(groupings, key=lambda n: (groupings[n][0], -n), default=None)
    if best is None:
        raise TagprError("discover: no group of steps is large enough to be a tag; take a larger sample")
    return groupings[best][1], separation


def _large(cluster: Ints, weight: Floats, least: float) -> Ints:
    """[labels] cluster of each label, renumbered over the clusters with at least `least` steps; -1 for the others."""
    large = np.bincount(cluster, weights=weight) >= least
    number: Ints = np.where(large, np.cumsum(large) - 1, -1)
    return number[cluster]


def _names(labels: Sequence[str], group: Ints) -> list[str]:
    """A valid, distinct tag name for each group: its most frequent label."""
    names: list[str] = []
    for g in range(int(group.max()) + 1):
        base = tag_name(_main_label([labels[i] for i in np.flatnonzero(group == g)])) or "step"
        name, number = base, 1
        while name in names:
            number += 1
            name = f"{base}_{number}"
        names.append(name)
    return names


def _main_label(labels: Sequence[str]) -> str:
    """The most frequent form of the label that is most frequent up to inflection; of equal forms the shortest."""
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
    """A sentence of the most frequent labels, for the user to improve."""
    main, *others = list(tag.labels)[:4]
    return f"{main.capitalize()}." + (f" Also called: {', '.join(others)}." if others else "")


def _examples(members: Ints, vectors: Floats, texts: Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    """Different steps, those nearest to the middle of their group first, and tasks in turn."""
    middle = vectors[members].mean(axis=0)
    order = np.argsort(-(vectors[members] @ middle), kind="stable")
    chosen: dict[str, None] = {}
    per_task: Counter[str] = Counter()
    for least in range(EXAMPLES):
        for i in order.tolist():
            text = texts[members[i]]
            if len(chosen) < EXAMPLES and per_task[tasks[i]] <= least and text not in chosen:
                chosen[text] = None
                per_task[tasks[i]] += 1
    return tuple(chosen)
