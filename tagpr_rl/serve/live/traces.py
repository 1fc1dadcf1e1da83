"""The trace viewer's data of a run that grows: what is new since a browser asked last, and when it must start anew."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tagpr_rl.config import EvaluateStage, Recipe
from tagpr_rl.report.page import traces as report
from tagpr_rl.report.page.collect import stage_dirs
from tagpr_rl.report.page.traces import Traces, add_file, rollout_files, viewer_traces
from tagpr_rl.run.layout import RunDir
from tagpr_rl.tags.schema import TagSchema

PER_STEP = 96
"""Responses of a new step that are shown: whole groups, one at least."""
_LISTS = ("prompts", "records", "groups", "traces")

Signature = tuple[int, int]
"""(time of the last change in ns, bytes) of a file."""


class GrowingTraces:
    """A run's traces. Steps are appended; what was shown before stays until a new generation begins.

    A generation ends if a file that was read has changed (a resumed stage makes its steps again), if evaluated
    responses have come, or if there are too many traces, which halves the steps shown.
    """

    def __init__(self, run: RunDir, recipe: Recipe, schema: TagSchema) -> None:
        self._run, self._recipe, self._schema = run, recipe, schema
        self._life, self._number = secrets.token_hex(4), 0
        self._files: dict[Path, tuple[str | None, Signature]] = {}
        self._marks: list[tuple[int, ...]] = []
        self._most = report.MOST_TRACES
        self._whole: tuple[tuple[str, int], bytes] = ("", -1), b""
        self._load()

    @property
    def version(self) -> tuple[str, int]:
        """(generation, mark): what a browser that has read everything holds."""
        return f"{self._life}-{self._number}", len(self._marks) - 1

    def update(self) -> None:
        """Read the steps that came since, or everything again."""
        now = self._signatures()
        new = now.keys() - self._files.keys()
        if any(now.get(path) != seen for path, seen in self._files.items()) or any(now[p][0] is None for p in new):
            self._load()
            return
        for stage, path in [(stage, path) for path, (stage, _) in now.items() if path in new and stage is not None]:
            of, shown = path.read_bytes().count(b"\n"), self.traces.shown["rollouts"]
            self.traces.shown["rollouts"] = [
                shown[0] + add_file(self.traces, self._recipe, stage, path, PER_STEP), shown[1] + of
            ]  # fmt: skip
        if new:
            self._files = now
            self._mark()
        if len(self.traces.traces) > self._most * 5 // 4:
            self._thin()

    def since(self, generation: str, mark: int) -> bytes:
        """JSON of what came after `mark` of `generation`; of everything if that is not the present one."""
        own, last = self.version
        if generation != own and self._whole[0] == (own, last):
            return self._whole[1]
        known = generation == own and 0 <= mark <= last
        starts = self._marks[mark] if known else (0, 0, 0, 0)
        data: dict[str, Any] = self.traces.as_json() | {"generation": own, "mark": last, "whole": not known}
        data |= {key: data[key][start:] for key, start in zip(_LISTS, starts, strict=True)}
        body = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        if not known:
            self._whole = (own, last), body
        return body

    def _load(self) -> None:
        self._files = self._signatures()
        files = [(stage, path) for path, (stage, _) in self._files.items() if stage is not None]
        self._begin(viewer_traces(self._run, self._recipe, self._schema, files=files))
        of = sum(count for _, count in self.traces.shown.values())
        self._most = len(self.traces.traces) if len(self.traces.traces) < of else report.MOST_TRACES

    def _begin(self, traces: Traces) -> None:
        self.traces, self._marks = traces, []
        self._number += 1
        self._mark()

    def _mark(self) -> None:
        self._marks.append(tuple(len(getattr(self.traces, key)) for key in _LISTS))

    def _thin(self) -> None:
        """Keep every second step of the rollouts, the last among them, and all that is evaluated."""
        steps = list(dict.fromkeys((stage, step) for stage, step, _ in self.traces.groups if step is not None))
        kept = set(steps[::-2])
        groups = self.traces.groups
        chosen = [i for i, (stage, step, _) in enumerate(groups) if step is None or (stage, step) in kept]
        self._begin(self.traces.subset(chosen))
        self.traces.shown["rollouts"][0] = sum("r" in trace for trace in self.traces.traces)

    def _signatures(self) -> dict[Path, tuple[str | None, Signature]]:
        """File -> its stage if it holds a step's rollouts, None if it holds evaluated responses; and its signature."""
        found: dict[Path, tuple[str | None, Signature]] = {}
        for stage, path in (*rollout_files(self._run, self._recipe), *self._evaluated()):
            try:
                status = path.stat()
            except FileNotFoundError:  # a stage that starts over has just removed it
                continue
            found[path] = stage, (status.st_mtime_ns, status.st_size)
        return found

    def _evaluated(self) -> Iterator[tuple[None, Path]]:
        for name, _, directory in stage_dirs(self._run, self._recipe):
            stage = self._recipe.stages[name]
            if isinstance(stage, EvaluateStage):
                for model in stage.models:
                    yield None, directory.root / "responses" / f"{model}.jsonl"
