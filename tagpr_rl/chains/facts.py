"""The content of chains.json: counts, reasons, tags, label quality and models, for the report and the data card."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from tagpr_rl.chains.build import ChainSet
from tagpr_rl.chains.client.usage import MeteredLabeller, MeteredTeacher
from tagpr_rl.chains.keep import KeepRules
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import TagSchema

PATTERNS = 10
"""Number of tag sequences listed, the most frequent ones."""


def chain_facts(
    chains: ChainSet, schema: TagSchema, rules: KeepRules, teacher: MeteredTeacher, labeller: MeteredLabeller
) -> dict[str, Any]:
    """The content of chains.json without the counts of pairs."""
    counts = chains.counts
    agreement = chains.agreement
    return {
        "asked": counts["asked"],
        "kept": counts["kept"],
        "kept_wrong": counts["kept_wrong"],
        "rejected": dict(Counter(item.reason.value for item in chains.rejected).most_common()),
        "by_task": _by_task(chains),
        "users": len({row.user_id for row in chains.rows}),
        **_tags(chains, schema),
        "kappa": chains.kappa,
        "agreement": asdict(agreement) if agreement is not None else None,
        "evidence": dict(chains.evidence),
        "teacher": {"name": teacher.name, "prompts": _hashes(teacher.prompts), **teacher.usage.as_dict()},
        "labeller": {
            "name": labeller.name,
            "deterministic": labeller.deterministic,
            "prompts": _hashes(labeller.prompts(schema)),
            **labeller.usage.as_dict(),
        },
        "rules": asdict(rules),
    }


def _hashes(prompts: Mapping[str, str]) -> dict[str, str]:
    """Name -> hex SHA-256 of each constant prompt text."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in prompts.items()}


def _by_task(chains: ChainSet) -> dict[str, dict[str, int]]:
    kept = Counter(row.task for row in chains.rows)
    rejected = Counter(item.task for item in chains.rejected)
    return {
        task: {"asked": kept[task] + rejected[task], "kept": kept[task]}
        for task in sorted(kept.keys() | rejected.keys())
    }


def _tags(chains: ChainSet, schema: TagSchema) -> dict[str, Any]:
    """Statistics of the tags in the kept chains.

    tags: tag -> number of steps. coverage: tag -> share of chains with it. steps_per_chain: number of steps -> number
    of chains. follows: tag -> next tag -> count. patterns: the most frequent sequences of tags.
    """
    steps: Counter[str] = Counter()
    chains_with: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    patterns: Counter[tuple[str, ...]] = Counter()
    for row in chains.rows:
        trace = parse(row.response, schema).trace
        assert trace is not None, "a kept chain parses"
        tags = tuple(step.tag for step in trace.steps)
        steps.update(tags)
        chains_with.update(set(tags))
        lengths[len(tags)] += 1
        patterns[tags] += 1
    follows: dict[str, Counter[str]] = {}
    for tags, n in patterns.items():
        for one, two in pairwise(tags):
            follows.setdefault(one, Counter())[two] += n
    total = max(1, len(chains.rows))
    return {
        "tags": {name: steps[name] for name in schema.names},
        "coverage": {name: chains_with[name] / total for name in schema.names},
        "steps_per_chain": {str(n): lengths[n] for n in sorted(lengths)},
        "follows": {name: dict(follows[name].most_common()) for name in schema.names if name in follows},
        "patterns": [{"tags": list(tags), "chains": n} for tags, n in patterns.most_common(PATTERNS)],
    }
