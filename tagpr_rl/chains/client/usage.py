"""Counts of replies: what a teacher or labeller used, and the progress line of a call to a model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tagpr_rl.chains.client.chat import Reply, ReplyStatus
from tagpr_rl.chains.labellers.label import Labeller
from tagpr_rl.chains.teachers.interface import Teacher, TeacherRequest
from tagpr_rl.tags.schema import TagSchema

REDRAW_S = 0.2
"""Least time between two drawings of the progress line."""
LINE_EVERY_S = 60.0
"""Progress without a terminal: one line in this time."""


@dataclass(slots=True)
class Usage:
    """Totals over replies. Tokens are 0 if nobody counts them (teachers and labellers made of rules)."""

    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    paid_tokens: int = 0
    """Prompt and completion tokens of the replies that did not come from the cache."""
    statuses: Counter[str] = field(default_factory=Counter)
    """`ReplyStatus` -> number of replies."""

    @property
    def replies(self) -> int:
        """Number of replies."""
        return self.statuses.total()

    def add(self, replies: Sequence[Reply]) -> None:
        """Count some replies."""
        for reply in replies:
            self.statuses[reply.status.value] += 1
            self.cached += reply.cached
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
            if not reply.cached:
                self.paid_tokens += reply.prompt_tokens + reply.completion_tokens

    def count(self, status: ReplyStatus) -> int:
        """Number of replies with that status."""
        return self.statuses[status.value]

    def as_dict(self) -> dict[str, Any]:
        """JSON values: the totals above, `requests`, and a count for each status that occurred."""
        totals = asdict(self) | {"statuses": dict(sorted(self.statuses.items()))}
        return {"requests": self.replies, **totals}


class MeteredTeacher:
    """A teacher whose replies are counted in `usage`."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.name, self.prompts = teacher.name, teacher.prompts
        self.usage = Usage()

    def generate(self, requests: Sequence[TeacherRequest]) -> list[Reply]:
        """The teacher's replies."""
        replies = self._teacher.generate(requests)
        self.usage.add(replies)
        return replies


class MeteredLabeller:
    """A labeller whose replies are counted in `usage`."""

    def __init__(self, labeller: Labeller) -> None:
        self._labeller = labeller
        self.name, self.deterministic, self.prompts = labeller.name, labeller.deterministic, labeller.prompts
        self.usage = Usage()

    def label(self, chains: Sequence[Sequence[str]], schema: TagSchema, pass_number: int = 0) -> list[Reply]:
        """The labeller's replies."""
        replies = self._labeller.label(chains, schema, pass_number)
        self.usage.add(replies)
        return replies


class ReplyProgress:
    """Counts the replies of one call, and shows requests, tokens, cost, rate and time left: a line now and then if the
    console is no terminal."""

    def __init__(self, name: str, total: int, console: Console | None = None) -> None:
        """`total`: number of questions. Nothing is shown without a console."""
        self.usage = Usage()
        self.money = 0.0
        self._started = time.monotonic()
        self._drawn = self._started
        self._name, self._total, self._console = name, total, console
        self._bar: Progress | None = None
        if console is not None and console.is_terminal and total:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(name, total=total, figures="")

    def __enter__(self) -> ReplyProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.stop()

    def add(self, reply: Reply, money: float) -> None:
        """Count one reply. `money`: the cost of the call so far, in the currency of the prices."""
        self.usage.add([reply])
        self.money = money
        since = time.monotonic() - self._drawn
        if self._bar is not None and since > REDRAW_S:
            self._draw()
        elif self._bar is None and self._console is not None and since > LINE_EVERY_S:
            self._drawn = time.monotonic()
            self._console.print(self.line(), highlight=False, markup=False, soft_wrap=True)

    def line(self) -> str:
        """`Qwen3-8B: 120 of 1,000, 4 min left, 90,000 in, 12,000 out, 3.1/s`."""
        done = self.usage.replies
        minutes = (self._total - done) * (time.monotonic() - self._started) / max(done, 1) / 60
        return f"{self._name}: {done:,} of {self._total:,}, {minutes:.0f} min left, {self.figures()}"

    def figures(self) -> str:
        """The text beside the bar."""
        usage = self.usage
        rate = usage.replies / max(time.monotonic() - self._started, 1e-9)
        parts = [f"{usage.prompt_tokens:,} in", f"{usage.completion_tokens:,} out"]
        if self.money:
            parts.append(f"cost {self.money:.4f}")
        parts.append(f"{rate:.1f}/s")
        failures = usage.replies - usage.count(ReplyStatus.OK)
        return ", ".join(parts + ([f"{failures} not OK"] if failures else []))

    def _draw(self) -> None:
        assert self._bar is not None
        self._drawn = time.monotonic()
        self._bar.update(self._task, completed=self.usage.replies, figures=self.figures())
