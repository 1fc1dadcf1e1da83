"""Where the time of a finished run went: steps of training, or starting and ending things. Reads the run's files.

Run: python bench/start.py runs/demo [--out start.json]

`steps` is the time from the end of a stage's first step to the end of its last. `around` is the rest of a stage that
trains: Ray, imports, the engines and PRMU, the first step, the last checkpoint, the published weights. A stage without
training steps is `other`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from shared import exit_with, finish

from tagpr_rl.run import metrics
from tagpr_rl.run.layout import stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.run.open import open_run
from tagpr_rl.types import TagprError


@dataclass(frozen=True, slots=True)
class StageTime:
    """Seconds of one stage; `steps + around + other` is the whole of it."""

    stage: str
    kind: str
    steps: float = 0.0
    around: float = 0.0
    other: float = 0.0


def stage_time(stage: str, kind: str, seconds: float, rows: Sequence[Mapping[str, Any]]) -> StageTime:
    """`rows`: the stage's metrics, whose `time_s` begins anew where the stage was resumed; that gap is no step."""
    if len(rows) < 2:
        return StageTime(stage, kind, other=seconds)
    times = [float(row["time_s"]) for row in rows]
    steps = sum(max(0.0, after - before) for before, after in itertools.pairwise(times))
    return StageTime(stage, kind, steps=min(steps, seconds), around=max(0.0, seconds - steps))


def run_times(run: str) -> list[StageTime]:
    """The times of a run's finished stages. TagprError if there is none."""
    recipe, folder = open_run(run)
    times = []
    for name, stage in recipe.stages.items():
        place = stage_dir(recipe, folder, name)
        manifest = read_manifest(place)
        if manifest is not None:
            times.append(stage_time(name, stage.kind, manifest.seconds, metrics.rows(place.metrics)))
    if not times:
        raise TagprError(f"{run}: no stage is finished; run it first")
    return times


def show(times: Sequence[StageTime], console: Console) -> None:
    """Print the stages and their sum."""
    table = Table("stage", "kind", title="Seconds")
    for heading in ("steps", "around", "other", "in all"):
        table.add_column(heading, justify="right")
    total = StageTime(
        "in all", "", *(sum(getattr(own, part) for own in times) for part in ("steps", "around", "other"))
    )
    for own in [*times, total]:
        parts = (own.steps, own.around, own.other, own.steps + own.around + own.other)
        table.add_row(own.stage, own.kind, *(f"{part:.0f}" if part else "" for part in parts))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--out", type=Path, default=None, help="write the figures as JSON, too")
    args = parser.parse_args()
    times = run_times(args.run)
    console = Console()
    show(times, console)
    if args.out is not None:
        finish(args.out, {own.stage: asdict(own) for own in times}, console)


if __name__ == "__main__":
    exit_with(main)
