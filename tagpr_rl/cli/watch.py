"""`tagpr watch`: a run's report in a browser while the run grows, or its progress in the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tagpr_rl.cli.arguments import RunName, say
from tagpr_rl.cli.status import progress_table
from tagpr_rl.config import Recipe
from tagpr_rl.report.page.read import GrowingRows, Row, number
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import read_manifest
from tagpr_rl.run.open import open_run
from tagpr_rl.run.progress import Progress, run_progress
from tagpr_rl.run.resume import working_process
from tagpr_rl.serve.live.server import LiveServer
from tagpr_rl.serve.live.view import LiveRun

EVERY_S = 2.0
"""Seconds between two looks of --follow."""
SHOWN = {
    "reward/total/mean": "reward",
    "reward/task/mean": "task",
    "groups/zero_variance_fraction": "groups without a difference",
    "timing_s/step": "seconds a step",
}
"""Metrics of the latest step that --follow shows -> their names there."""


def command(
    run: RunName,
    host: Annotated[str, typer.Option(help="Address to listen on; one that others reach needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8265,
    follow: Annotated[bool, typer.Option("--follow", help="Show the progress in the terminal; serve nothing.")] = False,
) -> None:
    """Serve RUN's report on this machine while the run grows: curves, rollouts as they are made, people's pages.

    It reads the run's files and writes none, so it may come and go while a run works. A run that crashed or has
    finished opens the same. With TAGPR_TOKEN in the environment the page asks for that token. Ctrl-C ends.

    Example: tagpr watch runs/demo
    """
    recipe, folder = open_run(run)
    if follow:
        follow_run(recipe, folder, Console())
        return
    with LiveServer(LiveRun(folder, recipe), host, port) as server:
        say(f"{server.url} (Ctrl-C ends; the run does not notice)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def follow_run(recipe: Recipe, run: RunDir, console: Console, every_s: float = EVERY_S) -> None:
    """Show the stages and the latest step until no process works on the run; on a terminal in place."""
    read = GrowingRows()
    if not console.is_terminal:
        last = ""
        while True:
            progress, working = progress_now(recipe, run, read)
            if (line := one_line(recipe, run, progress, read)) != last:
                last = line
                say(line)
            if not working:
                return
            time.sleep(every_s)
    try:
        with Live(console=console, auto_refresh=False) as screen:
            while True:
                progress, working = progress_now(recipe, run, read)
                line = one_line(recipe, run, progress, read)
                screen.update(Group(progress_table(recipe, progress), Text(line)), refresh=True)
                if not working:
                    return
                time.sleep(every_s)
    except KeyboardInterrupt:
        return


def progress_now(recipe: Recipe, run: RunDir, read: GrowingRows) -> tuple[dict[str, Progress], bool]:
    """(stage -> where it is, whether a process works on the run)."""
    done = {name: read_manifest(stage_dir(recipe, run, name)) is not None for name in recipe.stages}
    working = working_process(run) is not None
    states = {name: "done" if finished else "todo" for name, finished in done.items()}
    return run_progress(recipe, run, states, {}, running=working, rows=read), working


def one_line(recipe: Recipe, run: RunDir, progress: Mapping[str, Progress], read: GrowingRows) -> str:
    """The stage at work and its latest step; how many stages are done if there is none."""
    active = next((name for name, own in progress.items() if own.state in ("running", "interrupted")), None)
    if active is None:
        done = sum(own.state == "done" for own in progress.values())
        return f"{done} of {len(progress)} stages are done"
    own, rows = progress[active], read(stage_dir(recipe, run, active).metrics)
    parts = [f"{active} {own.state}", f"step {own.step}" if own.step else "", own.time, *latest(rows)]
    return ", ".join(part for part in parts if part)


def latest(rows: Sequence[Row]) -> list[str]:
    """`reward .731` and others of SHOWN, of the latest row that has them."""
    row: Mapping[str, Any] = rows[-1] if rows else {}
    values = {name: number(row.get(key)) for key, name in SHOWN.items()}
    return [f"{name} {value:.3f}" for name, value in values.items() if value is not None]
