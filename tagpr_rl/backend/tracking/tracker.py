"""Where a stage's metrics go: `metrics.jsonl` always, W&B and TensorBoard as the recipe says.

Stands in for verl.utils.tracking.Tracking, whose file logger truncates on restart and whose
`wandb.init` takes no run id.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar, cast

from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.config.rules import AlertLimits
from tagpr_rl.monitor.alerts import ALERTS, Alert, AlertWatch, append_alert, read_alerts
from tagpr_rl.run import metrics
from tagpr_rl.run.trackers import StepGate
from tagpr_rl.types import TagprError

START_LIMIT_S, ROW_LIMIT_S, FINISH_LIMIT_S = 90.0, 30.0, 70.0
"""The longest that a tracker's start, a row, and its end may hold a stage. W&B's own limits for the first and the last
are shorter (wandb_run.py), but a service that is stopped keeps none of them."""
T = TypeVar("T")


class StageTracker:
    """Logs one stage. Same methods as verl's Tracking: `log(data, step)`, `finish(exit_code)`.

    A tracker that fails, or does not return in time, is left out from then on, with one line in `warnings_file`:
    an outage never stops training.
    """

    def __init__(self, settings: TrackingSettings, config: dict[str, Any] | None = None) -> None:
        self.settings = settings
        self._started = time.time()
        path = Path(settings.metrics_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._last = 0
        self._waiting: list[tuple[int, Callable[[], None]]] = []
        self._limits = AlertLimits(**settings.alerts) if settings.alerts is not None else None
        if self._limits is not None:
            self._watch = AlertWatch(self._limits, metrics.rows(path), read_alerts(path.parent / ALERTS))
        self.logger: dict[str, Any] = {}
        self._sinks: dict[str, Any] = {}
        if settings.wandb_mode != "disabled":
            self._add("W&B", lambda: _wandb_sink(self, config or {}))
        if settings.tensorboard:
            self._add("TensorBoard", lambda: _tensorboard_sink(settings))

    def log(self, data: dict[str, Any], step: int, backend: Any = None) -> None:
        """Append one line to metrics.jsonl, send the same numbers to the trackers, raise the alerts that they give.

        TagprError, once all of that is done, if the recipe stops the stage for one of them.
        """
        row = {key: number for key, value in data.items() if (number := _number(value)) is not None}
        line = {"step": int(step), "time_s": round(time.time() - self._started, 3), **row}
        metrics.append(self._path, line)
        self._last = int(step)
        for name in list(self._sinks):
            self._try(name, lambda sink: sink.log(row, int(step)))
        self._call_waiting()
        if self._limits is not None:
            self._alert(self._watch.after(row, int(step)), self._limits)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table that goes to W&B with the next row logged; nothing without W&B."""
        if "W&B" in self._sinks:
            self._try("W&B", lambda sink: sink.table(name, columns, rows))

    def _alert(self, alerts: list[Alert], limits: AlertLimits) -> None:
        for alert in alerts:
            append_alert(self._path.with_name(ALERTS), alert)
            if "W&B" in self._sinks:
                self._try("W&B", methodcaller("alert", f"{self.settings.stage}: {alert.kind}", alert.text))
        stops = [alert for alert in alerts if alert.kind in limits.abort_on]
        if stops:
            raise TagprError(
                f"stage '{self.settings.stage}' was stopped at step {stops[0].step} by the alert {stops[0].kind} "
                f"(alerts.abort_on): {stops[0].text}. `tagpr resume` goes on past it, from the last checkpoint"
            )

    def after_row(self, step: int, then: Callable[[], None]) -> None:
        """Call `then` once the row of `step` is on disk (now, if it is)."""
        self._waiting.append((step, then))
        self._call_waiting()

    def _call_waiting(self) -> None:
        ready = [then for step, then in self._waiting if step <= self._last]
        self._waiting = [(step, then) for step, then in self._waiting if step > self._last]
        if ready:
            metrics.sync(self._path)
        for then in ready:
            then()

    def warn(self, text: str) -> None:
        """One line for the user, whose terminal is not this process's."""
        with warnings_file(self._path.parent).open("a", encoding="utf-8") as handle:
            handle.write(" ".join(text.split())[:600] + "\n")

    def finish(self, exit_code: int = 0) -> None:
        """Close the trackers. Safe to call twice."""
        for name in list(self._sinks):
            self._try(name, lambda sink: sink.finish(exit_code), FINISH_LIMIT_S)
        self._sinks = {}

    def _add(self, name: str, make: Callable[[], Any]) -> None:
        try:
            self._sinks[name] = within(START_LIMIT_S, make)
        except Exception as error:  # noqa: BLE001  (whatever a tracker's client raises, training goes on)
            self.warn(f"{name} could not start and is left out: {type(error).__name__}: {error}")

    def _try(self, name: str, call: Callable[[Any], None], seconds: float = ROW_LIMIT_S) -> None:
        try:
            within(seconds, lambda: call(self._sinks[name]))
        except Exception as error:  # noqa: BLE001  (as above)
            del self._sinks[name]
            self.warn(f"{name} failed and is left out from here on: {type(error).__name__}: {error}")


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises. TimeoutError after `seconds`; its thread is then left behind and ends with us."""
    outcome: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except Exception as error:  # noqa: BLE001  (raised again by the caller's thread)
            outcome.put((None, error))

    threading.Thread(target=run, name="tagpr-tracker", daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer for {seconds:g} s") from None
    if error is not None:
        raise error
    return cast(T, value)


class TrackerFactory:
    """Stands in for the class verl.utils.tracking.Tracking in a trainer's module; closes what it made.

    verl's trainers never call `finish`, and a process that is ended then loses its last rows of a tracker.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = TrackingSettings(**settings)
        self._made: list[StageTracker] = []

    def __call__(self, config: dict[str, Any] | None = None, **_: Any) -> StageTracker:
        self._made.append(StageTracker(self._settings, config))
        return self._made[-1]

    def finish(self) -> None:
        """Close every tracker that was made."""
        for tracker in self._made:
            tracker.finish()


def warnings_file(stage: Path) -> Path:
    """Where a stage's trackers leave their warnings: one line each."""
    return stage / "tracking_warnings.txt"


def _wandb_sink(tracker: StageTracker, config: dict[str, Any]) -> Any:
    from tagpr_rl.backend.tracking.wandb_run import WandbSink

    settings = tracker.settings
    gate = StepGate(Path(settings.wandb_dir) / "wandb_last_step")
    return WandbSink(settings, {settings.stage: config}, gate, tracker.warn)


def _tensorboard_sink(settings: TrackingSettings) -> Any:
    from tagpr_rl.backend.tracking.tensorboard import TensorboardSink

    return TensorboardSink(settings)


def _number(value: Any) -> float | None:
    """A finite float, or None for anything else (text, tables, NaN)."""
    if isinstance(value, bool | str):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
