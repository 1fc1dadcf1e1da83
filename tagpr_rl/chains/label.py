"""Labellers: one tag per step, returned as JSON and checked; a labeller never rewrites text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Protocol

from tagpr_rl.chains.teacher import Generate
from tagpr_rl.tags.schema import TagSchema
from tagpr_rl.types import TagprError


class Labeller(Protocol):
    """Tags the steps of chains."""

    def label(self, chains: Sequence[Sequence[str]], schema: TagSchema) -> list[str]:
        """For each chain (a list of step texts) a JSON text `{"steps": [{"i": 0, "tag": "..."}, ...]}`."""


def read_labels(reply: str, n: int, schema: TagSchema) -> tuple[str, ...] | None:
    """The tags of `n` steps, in order; None unless the reply is JSON with every index 0..n-1 exactly once and
    every tag in the schema. A code fence around the JSON is allowed."""
    text = reply.strip()
    if text.startswith("```"):
        text = text.strip("`").removeprefix("json")
    try:
        value: Any = json.loads(text)
    except ValueError:
        return None
    rows = value.get("steps") if isinstance(value, dict) else None
    if not isinstance(rows, list) or len(rows) != n:
        return None
    found: dict[int, str] = {}
    for row in rows:
        if not isinstance(row, dict) or type(row.get("i")) is not int or row.get("tag") not in schema.names:
            return None
        found[row["i"]] = row["tag"]
    return tuple(found[i] for i in range(n)) if set(found) == set(range(n)) else None


def write_labels(tags: Sequence[str]) -> str:
    """The JSON text of `read_labels`."""
    return json.dumps({"steps": [{"i": i, "tag": tag} for i, tag in enumerate(tags)]})


_QUOTED: Final = re.compile(r'"[^"]*"')
_CUES: Final = (
    ("check_answer", r"\b(check|checking|verify|double-check|consistent with)\b"),
    ("conclude", r"^(therefore|in conclusion|in short|the answer (is|must|should)|so the answer is)\b"),
    ("understand_task", r"^(the question|this question|the task|it asks|asks|we need|i need)\b"),
    ("weigh_conflict", r"\b(more often than|conflict|on the other hand|although|however|despite)\b"),
    ("compare_options", r"\b(compare|compared|rather than|closer to|options?|versus)\b"),
    ("apply_preference", r"^(so|hence|thus|applying|applied|for this|here)\b"),
    ("identify_patterns", r"\b(pattern|usually|often|always|mostly|tends?|in common|all of (them|these))\b"),
    ("infer_preference", r"\b(user|author|reviewer|writer|they|he|she) (prefers?|likes?|favou?rs?|wants?|values?)\b"),
    ("infer_preference", r"\b(preference|preferred)\b"),
    ("examine_examples", r'\b(wrote|gave|tagged|rated|history|item|example|title|profile)\b|"'),
)
"""Tag and cue, most specific first; the first cue found in a step decides."""


class ScriptedLabeller:
    """Tags a step by cue words in its text (ours). It sees the texts only, not who wrote them or why.

    A step without a cue gets an empty tag, which fails `read_labels`, so that the chain is rejected.
    """

    def __init__(self) -> None:
        self._cues = [(tag, re.compile(pattern, re.IGNORECASE)) for tag, pattern in _CUES]

    def tag(self, step: str) -> str:
        """The tag of one step, or ""."""
        text = _QUOTED.sub('""', step.strip())  # a quoted title is evidence, not the step's own words
        return next((tag for tag, cue in self._cues if cue.search(text)), "")

    def label(self, chains: Sequence[Sequence[str]], schema: TagSchema) -> list[str]:
        """One JSON text per chain; tags that the schema lacks are written all the same and then rejected."""
        return [write_labels([self.tag(step) for step in chain]) for chain in chains]


class ModelLabeller:
    """A language model as labeller, behind a `generate` callable (our prompt; the paper's is not public)."""

    def __init__(self, generate: Generate) -> None:
        self._generate = generate

    def label(self, chains: Sequence[Sequence[str]], schema: TagSchema) -> list[str]:
        """Ask for the JSON of `read_labels`."""
        tags = "\n".join(f"{tag.name}: {tag.purpose}" for tag in schema.tags)
        system = (
            "Give each numbered reasoning step one tag that says what the step does. The tags:\n"
            f"{tags}\n"
            'Answer with JSON only: {"steps": [{"i": 0, "tag": "..."}, ...]}, each index once.'
        )
        chats = [
            [
                {"role": "system", "content": system},
                {"role": "user", "content": "\n".join(f"[{i}] {step.strip()}" for i, step in enumerate(chain))},
            ]
            for chain in chains
        ]
        replies = self._generate(chats)
        if len(replies) != len(chains):
            raise TagprError(f"the labeller answered {len(replies)} of {len(chains)} chains; one text each is needed")
        return replies


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's kappa of two labellings of the same steps, in [-1, 1]; 1.0 when both use one same tag throughout.

    (p_o - p_e) / (1 - p_e), with p_e from the two labellings' own tag shares. ValueError when empty or unequal.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"kappa needs two labellings of the same steps, got {len(first)} and {len(second)}")
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    one, two = Counter(first), Counter(second)
    expected = sum(one[tag] * two[tag] for tag in one) / n**2
    return 1.0 if expected == 1.0 else (observed - expected) / (1 - expected)
