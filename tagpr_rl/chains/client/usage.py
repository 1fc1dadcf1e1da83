"""What teachers and labellers were asked and what it took, counted where the replies pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tagpr_rl.chains.client.generate import Reply, ReplyStatus
from tagpr_rl.chains.labellers.label import Labeller
from tagpr_rl.chains.teachers.interface import Teacher, TeacherRequest
from tagpr_rl.tags.schema import TagSchema


class Usage:
    """Totals over replies."""

    def __init__(self) -> None:
        self._statuses: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()

    def add(self, replies: Sequence[Reply]) -> None:
        """Count some replies."""
        for reply in replies:
            self._statuses[reply.status.value] += 1
            self._totals["cached"] += reply.cached
            self._totals["prompt_tokens"] += reply.prompt_tokens
            self._totals["completion_tokens"] += reply.completion_tokens
            if not reply.cached:
                self._totals["paid_tokens"] += reply.prompt_tokens + reply.completion_tokens

    def count(self, status: ReplyStatus) -> int:
        """Replies with that status."""
        return self._statuses[status.value]

    def as_dict(self) -> dict[str, Any]:
        """requests, cached, prompt_tokens, completion_tokens, paid_tokens (cached replies left out) and a count for
        each status that occurred. Tokens are 0 where nobody counts them (rules)."""
        keys = ("cached", "prompt_tokens", "completion_tokens", "paid_tokens")
        totals: dict[str, Any] = {key: self._totals[key] for key in keys}
        return {"requests": self._statuses.total(), **totals, "statuses": dict(sorted(self._statuses.items()))}


class MeteredTeacher:
    """A teacher whose replies are counted in `usage`."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.usage = Usage()

    @property
    def name(self) -> str:
        """The teacher's name."""
        return self._teacher.name

    @property
    def prompts(self) -> Mapping[str, str]:
        """The teacher's prompts."""
        return self._teacher.prompts

    def generate(self, requests: Sequence[TeacherRequest]) -> list[Reply]:
        """The teacher's replies."""
        replies = self._teacher.generate(requests)
        self.usage.add(replies)
        return replies


class MeteredLabeller:
    """A labeller whose replies are counted in `usage`."""

    def __init__(self, labeller: Labeller) -> None:
        self._labeller = labeller
        self.usage = Usage()

    @property
    def name(self) -> str:
        """The labeller's name."""
        return self._labeller.name

    @property
    def deterministic(self) -> bool:
        """As the labeller says."""
        return self._labeller.deterministic

    def prompts(self, schema: TagSchema) -> Mapping[str, str]:
        """The labeller's prompts."""
        return self._labeller.prompts(schema)

    def label(self, chains: Sequence[Sequence[str]], schema: TagSchema, pass_number: int = 0) -> list[Reply]:
        """The labeller's replies."""
        replies = self._labeller.label(chains, schema, pass_number)
        self.usage.add(replies)
        return replies
