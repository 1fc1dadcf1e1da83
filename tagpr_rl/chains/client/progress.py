"""The progress line of a call to a model: requests, tokens, cost, rate and time left; silent without a terminal."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tagpr_rl.chains.client.generate import Reply, ReplyStatus

REDRAW_S = 0.2


class AskProgress:
    """Counts replies; draws them on a terminal."""

    def __init__(self, name: str, total: int, console: Console | None = None) -> None:
        """`total`: questions to ask. Without a console, or with one that is no terminal, nothing is drawn."""
        self.total, self.done, self.money = total, 0, 0.0
        self.tokens_in = self.tokens_out = 0
        self.statuses: Counter[ReplyStatus] = Counter()
        self._started = time.monotonic()
        self._drawn = 0.0
        self._bar: Progress | None = None
        if console is not None and console.is_terminal and total:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(name, total=total, facts="")

    def __enter__(self) -> AskProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.stop()

    def add(self, reply: Reply, money: float) -> None:
        """One question is done; `money`: spent so far in this call."""
        self.done += 1
        self.money = money
        self.tokens_in += reply.prompt_tokens
        self.tokens_out += reply.completion_tokens
        self.statuses[reply.status] += 1
        if self._bar is not None and time.monotonic() - self._drawn > REDRAW_S:
            self._draw()

    def facts(self) -> str:
        """What stands beside the bar."""
        rate = self.done / max(time.monotonic() - self._started, 1e-9)
        parts = [f"{self.tokens_in:,} in", f"{self.tokens_out:,} out"]
        if self.money:
            parts.append(f"cost {self.money:.4f}")
        parts.append(f"{rate:.1f}/s")
        bad = self.done - self.statuses[ReplyStatus.OK]
        return ", ".join(parts + ([f"{bad} not OK"] if bad else []))

    def _draw(self) -> None:
        assert self._bar is not None
        self._drawn = time.monotonic()
        self._bar.update(self._task, completed=self.done, facts=self.facts())
