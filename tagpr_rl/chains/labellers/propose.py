"""Derives a tag schema from tagged chains: the tags' order, their counts, and which of them are required."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import yaml

from tagpr_rl.tags.constraints import tag_score
from tagpr_rl.tags.schema import TagSchema, TagSpec, schema_from_mapping, to_mapping
from tagpr_rl.types import Step, TaggedTrace

USUAL = 0.95
"""A property of at least this share of the chains becomes a rule."""
LEAST_CHAINS = 3
"""Two tags that occur together in fewer chains get no order."""

Assigned = tuple[str | None, ...]
"""Tag of each step of one chain; None = in no tag."""


def propose_schema(chains: Sequence[Assigned], purposes: Mapping[str, str], version: str) -> TagSchema:
    """A schema of the tags in `purposes` (name -> purpose), ordered by their mean place in the chains.

    A tag is required if a share of at least `USUAL` of the chains has it. `max_count` is the least number that a share
    of `USUAL` of the chains with the tag does not exceed. `before` names the tags that come later on average *and* in
    at least `USUAL` of the chains with both, so it has no cycle.
    """
    place = {name: _mean_place(chains, name) for name in purposes}
    order = sorted(purposes, key=lambda name: (place[name], name))
    specs = []
    for index, name in enumerate(order):
        counts = sorted(n for chain in chains if (n := chain.count(name)))
        required = len(counts) >= USUAL * len(chains) and bool(counts)
        most = counts[-(-len(counts) * 95 // 100) - 1] if counts else 1
        later = tuple(other for other in order[index + 1 :] if _comes_before(chains, name, other))
        specs.append(TagSpec(name, purposes[name], required, int(required), most, later))
    return TagSchema(version, tuple(specs))


def _mean_place(chains: Sequence[Assigned], name: str) -> float:
    """Mean of the tag's first place in the chains that have it, 0 = first step, 1 = last."""
    places = [chain.index(name) / max(len(chain) - 1, 1) for chain in chains if name in chain]
    return sum(places) / len(places) if places else 1.0


def _comes_before(chains: Sequence[Assigned], first: str, second: str) -> bool:
    both = [chain for chain in chains if first in chain and second in chain]
    return len(both) >= LEAST_CHAINS and sum(c.index(first) < c.index(second) for c in both) >= USUAL * len(both)


def fit(chains: Sequence[tuple[Assigned, Sequence[str]]], schema: TagSchema) -> float:
    """Share of the chains (tags, texts) whose every step has a tag and whose `tag_score` is 1, in [0, 1]."""
    scores = [
        tag_score(TaggedTrace(tuple(Step(str(t), x) for t, x in zip(tags, texts, strict=True)), "-"), schema)
        if None not in tags
        else 0.0
        for tags, texts in chains
    ]
    return sum(score == 1.0 for score in scores) / len(scores) if scores else 0.0


def schema_yaml(schema: TagSchema, heading: Sequence[str], notes: Mapping[str, Sequence[str]]) -> str:
    """The schema as a file for a recipe's `schema_file`, with `heading` and each tag's notes as comments.

    A note may be any text: it becomes one line of ASCII JSON, which cannot end the comment.
    """
    values = to_mapping(schema)
    lines = [*(f"# {_one_line(line)}" for line in heading), f"version: {json.dumps(schema.version)}", "tags:"]
    for tag in values["tags"]:
        lines += [f"  # {_one_line(note)}" for note in notes.get(tag["name"], ())]
        block = yaml.safe_dump(tag, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
        first, *rest = block.rstrip("\n").split("\n")
        lines += [f"  - {first}", *(f"    {line}" for line in rest)]
    text = "\n".join(lines) + "\n"
    assert schema_from_mapping(yaml.safe_load(text), where="the proposed schema") == schema
    return text


def _one_line(text: str) -> str:
    return json.dumps(text)[1:-1]


def label_counts(labels: Sequence[str]) -> dict[str, int]:
    """Label -> number of occurrences, most frequent first, equal ones in alphabetical order."""
    return dict(sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0])))
