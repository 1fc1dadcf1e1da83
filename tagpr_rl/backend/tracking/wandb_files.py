"""A whole run as one W&B run in one offline folder, written from its metrics.jsonl files; a process of its own.

The folders that a run's processes recorded are exact unless one of them was killed. W&B (0.31.0) writes its file every
few seconds: a killed process takes rows along that metrics.jsonl has, and leaves an empty file if it was young, which
ends the upload of all folders. Steps that a resumed stage makes again stand in two folders and so twice at the server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tagpr_rl.backend.tracking.settings import TrackingSettings
from tagpr_rl.backend.tracking.wandb_run import start
from tagpr_rl.run import metrics
from tagpr_rl.run.trackers import GLOBAL_STEP


def write_files(given: dict[str, Any], warn: Callable[[str], None]) -> Path:
    """Write every row of every stage once, in order; returns W&B's folder.

    `given`: {"settings": TrackingSettings, "config": the recipe, "stages": [[name, steps of the stages before,
    metrics.jsonl], ...], "results": {name: number}}.
    """
    settings = TrackingSettings(**given["settings"])
    run = start(settings, {"recipe": given["config"]}, warn)
    run.define_metric(GLOBAL_STEP, hidden=True)
    run.define_metric("*", step_metric=GLOBAL_STEP)
    for stage, before, path in given["stages"]:
        for row in metrics.each(Path(path)):
            step = int(row["step"])
            named = {f"{stage}/{key}": value for key, value in row.items() if key not in ("step", "time_s")}
            run.log({**named, f"{stage}/step": step, GLOBAL_STEP: before + step}, step=before + step)
    run.summary.update(given["results"])
    folder = Path(run.dir).parent
    run.finish()
    import wandb

    wandb.teardown()
    return folder


def main() -> None:
    """Read `given` on standard input; warnings go to standard error, the folder to standard output."""
    print(write_files(json.load(sys.stdin), lambda text: print(text, file=sys.stderr)))


if __name__ == "__main__":
    main()
