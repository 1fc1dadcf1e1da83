"""A run as the live view shows it: what changed since the last look, and only that made again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tagpr_rl.config import Recipe
from tagpr_rl.report.page.collect import collect, stage_dirs
from tagpr_rl.report.page.embed import LIVE_SCRIPTS, environment, script, script_source
from tagpr_rl.report.page.html import curves_section, sections_of
from tagpr_rl.report.page.read import GrowingRows, Row
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.progress import Progress, run_progress
from tagpr_rl.run.resume import working_process
from tagpr_rl.serve.live.links import step_links
from tagpr_rl.serve.live.traces import GrowingTraces
from tagpr_rl.tags.schema import schema_from
from tagpr_rl.types import TagprError

LOOK_S = 1.0
"""Seconds between two looks at the files, however many browsers ask."""
CURVES_SHARE = 0.005
"""Of the time, at most, goes into drawing the curves again."""
RESULTS = ("manifest.json", "alerts.jsonl", "eval.json", "chains.json", "prmu.json", "data.json", "prompts.json")
"""Files of a stage that the page outside of curves and traces is made from."""


class LiveRun:
    """Reads a run's folder and never writes. Every method may be called from any thread.

    TagprError if a file is broken from the start.
    """

    def __init__(self, run: RunDir, recipe: Recipe) -> None:
        self.run, self.recipe = run, recipe
        self.schema = schema_from(recipe.schema_file)
        self._lock = threading.RLock()
        self._read = GrowingRows()
        self._traces = GrowingTraces(run, recipe, self.schema)
        self._looked = self._curves_due = -math.inf
        self._results: Any = None
        self._steps: Any = None
        self._versions = {"page": 0, "curves": 0}
        self._report: Row = {}
        self._curves = ""
        self._page: tuple[dict[str, int], str] = ({}, "")
        self._curves_wait = False
        self._progress: dict[str, Progress] = {}
        self._error = ""
        self.refresh()
        if not self._report:
            raise TagprError(self._error)
        self.page()  # the first browser need not wait for it

    def refresh(self) -> None:
        """Look at the files, unless that was done less than LOOK_S ago. A broken file keeps what was shown."""
        with self._lock:
            if time.monotonic() - self._looked < LOOK_S:
                return
            try:
                self._look()
                self._error = ""
            except (TagprError, OSError) as error:
                self._error = str(error)
            self._looked = time.monotonic()

    def state(self) -> dict[str, Any]:
        """What a browser polls: versions of the page's parts, and where the run is."""
        with self._lock:
            self.refresh()
            done = sum(progress.state == "done" for progress in self._progress.values())
            generation, mark = self._traces.version
            return {
                **self._versions,
                "generation": generation,
                "mark": mark,
                "now": self._now(),
                "stages": [done, len(self._progress)],
                "alerts": len(self._report.get("alerts") or ()),
                "error": self._error,
            }

    def progress(self) -> dict[str, Progress]:
        """Stage -> where it is."""
        with self._lock:
            self.refresh()
            return dict(self._progress)

    def rows(self) -> dict[str, list[Row]]:
        """Stage -> the rows of its metrics, of the stages that have some."""
        with self._lock:
            self.refresh()
            every = {name: self._read(directory.metrics) for name, _, directory in stage_dirs(self.run, self.recipe)}
            return {name: rows for name, rows in every.items() if rows}

    def page(self) -> str:
        """The whole page without the traces, which the browser asks for."""
        with self._lock:
            self.refresh()
            if self._page[0] != self._versions:
                source = script(LIVE_SCRIPTS)
                text = (
                    environment()
                    .get_template("report.html.j2")
                    .render(
                        **sections_of(self.run, self.recipe, self._report, self.schema),
                        curves=self._curves,
                        live=True,
                        state=self._versions,
                        traces=None,
                        script=source,
                        script_source=script_source(source),
                    )
                )
                self._page = dict(self._versions), text
            return self._page[1]

    def curves(self) -> str:
        """The part of the page with the curves."""
        with self._lock:
            return self._curves

    def traces(self, generation: str, mark: int) -> bytes:
        """`GrowingTraces.since`."""
        with self._lock:
            self.refresh()
            return self._traces.since(generation, mark)

    def links(self, generation: str, trace: int) -> list[list[list[Any]]] | None:
        """`step_links` of a trace; None if it is not of the present generation or does not exist."""
        with self._lock:
            if generation != self._traces.version[0] or not 0 <= trace < len(self._traces.traces.traces):
                return None
            return step_links(self._traces.traces, trace)

    def _look(self) -> None:
        results, steps = list(self._result_files()), list(self._metrics_files())
        if results != self._results:
            self._report = collect(self.run, self.recipe)
            self._versions["page"] += 1
            self._results, self._steps = results, None
        if steps != self._steps:
            self._steps, self._curves_wait = steps, True
        if self._curves_wait and time.monotonic() >= self._curves_due:
            self._draw()
        self._traces.update()
        scores = {name: model["mean"] for name, model in self._report["models"].items() if model["mean"] is not None}
        states = {stage["name"]: "done" if stage["status"] == "done" else "todo" for stage in self._report["stages"]}
        running = working_process(self.run) is not None
        self._progress = run_progress(self.recipe, self.run, states, scores, running=running, rows=self._read)

    def _draw(self) -> None:
        """Draw the curves. The next time is put off in proportion to what this took."""
        begun = time.thread_time()
        # Only a run of an earlier release has no figures of tags; they are not counted again with every step.
        self._curves = curves_section(self.run, self.recipe, self._report, self._traces.traces.as_json(), self._read)
        self._versions["curves"] += 1
        self._curves_wait = False
        self._curves_due = time.monotonic() + (time.thread_time() - begun) / CURVES_SHARE

    def _now(self) -> dict[str, str]:
        """The stage at work, or the last one."""
        active = [(name, own) for name, own in self._progress.items() if own.state in ("running", "interrupted")]
        if active:
            name, own = active[0]
            return {"state": own.state, "stage": name, "step": own.step, "time": own.time, "score": own.score}
        todo = next((name for name, own in self._progress.items() if own.state == "todo"), "")
        return {"state": "waiting" if todo else "done", "stage": todo, "step": "", "time": "", "score": ""}

    def _result_files(self) -> Iterator[tuple[str, int, int]]:
        for _, _, directory in stage_dirs(self.run, self.recipe):
            if directory.root.is_dir():
                yield str(directory.root), 0, 0
                yield from signatures(directory.root / name for name in RESULTS)
                yield from signatures(sorted((directory.root / "responses").glob("*.jsonl")))
        yield from signatures([self.run.environment])
        for folder in (self.run.prmu_eval, self.run.root / "faithful"):
            yield from signatures(sorted(folder.glob("*.json")))

    def _metrics_files(self) -> Iterator[tuple[str, int, int]]:
        yield from signatures(directory.metrics for _, _, directory in stage_dirs(self.run, self.recipe))


def signatures(paths: Any) -> Iterator[tuple[str, int, int]]:
    """(path, time of the last change in ns, bytes) of the files that exist."""
    path: Path
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        yield str(path), status.st_mtime_ns, status.st_size
