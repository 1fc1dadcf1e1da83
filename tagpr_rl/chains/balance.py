"""Balances the kept chains over users, tasks and tag sequences by seeded caps that keep rare tags first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class BalanceRules:
    """Caps on the kept chains. All are off by default."""

    max_per_user: int | None = None
    """Largest number of chains of one user; None = no limit."""
    max_task_share: float = 1.0
    """Largest share of one task, in (0, 1]. A share below 1 / (number of tasks) means equal shares."""
    max_pattern_share: float = 1.0
    """Largest share of one sequence of tags, in (0, 1]. It limits a teacher that always thinks in the same form."""


@dataclass(frozen=True, slots=True)
class Member:
    """The properties of one chain that are balanced."""

    task: str
    user_id: str
    tags: tuple[str, ...]


def cap_for(sizes: Sequence[int], share: float) -> int:
    """The largest c such that no group cut to c makes up more than `share` of all groups cut to c.

    A share below 1 / groups cannot be met; then all groups are cut to the smallest one.
    """
    share = max(share, 1 / len(sizes)) if sizes else 1.0
    # c - share * sum(min(n, c)) is convex, 0 at c = 0 and not rising there, so it is <= 0 up to one point only.
    low, high = min(sizes, default=0), max(sizes, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if middle <= share * sum(min(n, middle) for n in sizes) + 1e-9:
            low = middle
        else:
            high = middle - 1
    return low


def balanced(members: Sequence[Member], rules: BalanceRules, seed: int) -> list[bool]:
    """Whether each chain is kept under the caps on users, then on tasks, then on tag sequences.

    A group above its cap keeps the chains with rarer tags. Between equals the choice depends only on `seed` and the
    number of chains.
    """
    order = list(range(len(members)))
    Random(f"balance/{seed}").shuffle(order)
    frequency = Counter(tag for member in members for tag in set(member.tags))
    order.sort(key=lambda i: min((frequency[tag] for tag in members[i].tags), default=0))  # stable: ties stay shuffled
    keep = set(order)
    if rules.max_per_user is not None:
        keep = _capped([i for i in order if i in keep], [m.user_id for m in members], rules.max_per_user)
    for keys, share in (
        ([m.task for m in members], rules.max_task_share),
        ([m.tags for m in members], rules.max_pattern_share),
    ):
        if share < 1.0 and keep:
            sizes = list(Counter(keys[i] for i in keep).values())
            keep = _capped([i for i in order if i in keep], keys, cap_for(sizes, share))
    return [i in keep for i in range(len(members))]


def _capped(order: Sequence[int], keys: Sequence[Hashable], cap: int) -> set[int]:
    """The first `cap` of each key, in the given order."""
    counts: dict[Hashable, int] = defaultdict(int)
    first = set()
    for i in order:
        if counts[keys[i]] < cap:
            counts[keys[i]] += 1
            first.add(i)
    return first
