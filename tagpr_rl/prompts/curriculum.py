"""A curriculum by learnability: questions whose groups differ in their reward are asked more often.

A group's advantage is its spread around its mean, so the variance of its rewards says how much a question teaches now.
A question is asked once or twice in a stage; what is known of it comes from its person and task.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from itertools import accumulate
from statistics import pvariance
from typing import Any

Cell = tuple[str, str]
"""A person's id and a task."""
CELL_GROUPS, TASK_GROUPS = 8, 64
"""Newest groups that a running mean looks back on, about: of a person and task, and of a task."""
PRIOR_GROUPS = 2
"""The task's mean counts as so many groups of each person."""
_TRIES = 100


class RunningMean:
    """Mean of the newest values, about `most` of them; of all values while there are fewer."""

    def __init__(self, most: int, mean: float = 0.0, count: int = 0) -> None:
        self.most, self.mean, self.count = most, mean, count

    def add(self, value: float) -> None:
        """Take one value in."""
        self.count = min(self.count + 1, self.most)
        self.mean += (value - self.mean) / self.count


class Curriculum:
    """Draws questions: a share `floor` of the draws treats all alike, the others go by the running variance.

    The same seed and the same rewards give the same order; `state` holds all that a draw depends on.
    """

    def __init__(self, cells: Sequence[Cell], *, floor: float, spacing: int, seed: int) -> None:
        """`cells`: of each question, by its index. None of the last `spacing` questions is drawn again."""
        self._floor, self._seed, self._size = floor, seed, len(cells)
        self._members: dict[Cell, list[int]] = defaultdict(list)
        for index, cell in enumerate(cells):
            self._members[cell].append(index)
        self._cells = sorted(self._members)
        self._by_cell: dict[Cell, RunningMean] = {}
        self._by_task: dict[str, RunningMean] = {}
        self._drawn = 0
        self._recent: deque[int] = deque(maxlen=min(spacing, len(cells) - 1))
        self._sums: list[float] | None = None

    def draw(self) -> int:
        """Index of the next question."""
        rng = random.Random(f"{self._seed}/{self._drawn}")
        recent = set(self._recent)
        index = next((i for i in (self._pick(rng) for _ in range(_TRIES)) if i not in recent), None)
        if index is None:
            index = rng.choice([i for i in range(self._size) if i not in recent])
        self._drawn += 1
        self._recent.append(index)
        return index

    def learn(self, groups: Iterable[tuple[Cell, Sequence[float]]]) -> None:
        """Take in the rewards of a step's groups, in an order of its own."""
        for cell, rewards in sorted(groups):
            if len(rewards) < 2:
                continue
            value = pvariance(rewards)
            self._by_cell.setdefault(cell, RunningMean(CELL_GROUPS)).add(value)
            self._by_task.setdefault(cell[1], RunningMean(TASK_GROUPS)).add(value)
        self._sums = None

    def variance(self, cell: Cell) -> float:
        """How much the next group of this person and task should vary; a task without a group counts as the best."""
        tasks = self._by_task
        best = max((mean.mean for mean in tasks.values()), default=0.0)
        prior = tasks[cell[1]].mean if cell[1] in tasks else best
        own = self._by_cell.get(cell, RunningMean(CELL_GROUPS))
        return (PRIOR_GROUPS * prior + own.count * own.mean) / (PRIOR_GROUPS + own.count)

    def _pick(self, rng: random.Random) -> int:
        if self._sums is None:
            self._sums = list(accumulate(len(self._members[cell]) * self.variance(cell) for cell in self._cells))
        if self._sums[-1] <= 0 or rng.random() < self._floor:
            return rng.randrange(self._size)
        (cell,) = rng.choices(self._cells, cum_weights=self._sums)
        return rng.choice(self._members[cell])

    def state(self) -> dict[str, Any]:
        """Everything that the next draw depends on, as plain values."""
        return {
            "drawn": self._drawn,
            "recent": list(self._recent),
            "cells": [[*cell, mean.mean, mean.count] for cell, mean in sorted(self._by_cell.items())],
            "tasks": [[task, mean.mean, mean.count] for task, mean in sorted(self._by_task.items())],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._drawn, self._sums = int(state["drawn"]), None
        self._recent.clear()
        self._recent.extend(state["recent"])
        self._by_cell = {(user, task): RunningMean(CELL_GROUPS, mean, n) for user, task, mean, n in state["cells"]}
        self._by_task = {task: RunningMean(TASK_GROUPS, mean, n) for task, mean, n in state["tasks"]}
