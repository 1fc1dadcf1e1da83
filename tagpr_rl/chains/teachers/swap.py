"""The same question with another user's profile: for the evidence check and for cross-profile pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from tagpr_rl.data.tasks import TASKS
from tagpr_rl.prompts.retrieve import bm25_scores
from tagpr_rl.types import LampRecord

CANDIDATES = 8
"""Other users looked at per question; the one whose profile is nearest to the question is taken (hard pairs)."""


class ProfilePool:
    """Profiles of all users by task. The choice for a record depends on the seed and the record alone."""

    def __init__(self, records: Sequence[LampRecord], seed: int) -> None:
        self._seed = seed
        users: dict[str, dict[str, LampRecord]] = {}
        for record in records:
            if record.profile:
                users.setdefault(record.task, {}).setdefault(record.user_id, record)
        self.by_task = {task: list(found.values()) for task, found in users.items()}
        """Task -> one record per user that has a profile."""

    def other(self, record: LampRecord, candidates: int = CANDIDATES) -> LampRecord | None:
        """Among a few random other users, the one with the item nearest to the question; None when there is none."""
        pool = self.by_task.get(record.task, [])
        rng = Random(f"other/{self._seed}/{record.id}")
        drawn = rng.sample(pool, min(candidates + 1, len(pool)))
        others = [r for r in drawn if r.user_id != record.user_id][:candidates]
        if len(others) < 2:
            return others[0] if others else None
        spec = TASKS[record.task]
        query = spec.query(record)
        best = [max(bm25_scores([spec.item_text(item) for item in r.profile], query)) for r in others]
        return others[best.index(max(best))]

    def lent(self, record: LampRecord, candidates: int = CANDIDATES) -> tuple[LampRecord, str] | None:
        """(the record with the other user's profile, that user's id), or None when there is no other user."""
        other = self.other(record, candidates)
        return (replace(record, profile=other.profile), other.user_id) if other is not None else None
