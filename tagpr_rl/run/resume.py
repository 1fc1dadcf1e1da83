"""The point where an interrupted run continues: the stage, the step, and changes that prevent it.

A stage that was interrupted may have step checkpoints, which verl would resume whatever they were trained
on. `attempt.json` says what it was started from; another recipe or other inputs now are an error.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any

from tagpr_rl.config import Recipe, training_steps
from tagpr_rl.run import checkpoints
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import StageFacts, stage_facts
from tagpr_rl.run.state import compare, config_changes, require_unchanged
from tagpr_rl.types import TagprError

TRIES = 3
"""Times that a lock is tried, at a distance of .1 s: who looks whether a run works holds it for a moment."""
ATTEMPT = "attempt.json"
"""File with the recipe values and inputs that an unfinished training stage started from."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Finished stages, and the stage that is next (None = the run is finished)."""

    done: tuple[str, ...]
    stage: str | None
    step: int = 0
    """Newest complete checkpoint of that stage; its files are compared with their hashes when the stage starts."""
    steps: int = 0
    """Training steps of that stage; 0 if it does not train."""

    def describe(self) -> str:
        """One line for the terminal."""
        if self.stage is None:
            return f"nothing to resume: all {len(self.done)} stages are done"
        where = f"{len(self.done)} stage(s) done; going on with stage '{self.stage}'"
        if self.step:
            return f"{where} after step {self.step} of {self.steps}"
        return f"{where}, from its start" + (" (it has no checkpoint yet)" if self.steps else "")


def resume_point(recipe: Recipe, run: RunDir) -> ResumePoint:
    """The point where the run continues. TagprError names every changed input if it cannot."""
    states = require_unchanged(recipe, run)
    done = tuple(name for name, state in states.items() if state.status == "done")
    stage = next((name for name, state in states.items() if state.status == "todo"), None)
    if stage is None:
        return ResumePoint(done, None)
    require_same_attempt(recipe, run, stage, stage_facts(recipe, run, stage))
    steps = training_steps(recipe.stages[stage])
    saved = checkpoints.steps(stage_dir(recipe, run, stage).checkpoints)
    return ResumePoint(done, stage, saved[-1] if saved else 0, steps)


def require_same_attempt(recipe: Recipe, run: RunDir, name: str, facts: StageFacts) -> None:
    """Raise TagprError if the stage was interrupted and the recipe or its inputs have changed since."""
    path = stage_dir(recipe, run, name).root / ATTEMPT
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TagprError(f"{path} is not valid JSON ({error}); delete {path.parent} to start the stage over") from None
    changes = fact_changes(recipe, name, recorded, asdict(facts))
    if changes:
        raise TagprError(
            f"stage '{name}' was interrupted, and the recipe or its inputs have changed since:\n  "
            + "\n  ".join(changes)
            + f"\nDelete {path.parent} to start the stage over, or use another folder (name=<new name>)."
        )


def fact_changes(recipe: Recipe, name: str, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions of a stage that each hold its recipe values as `config`, a line per key."""
    lines = [f"config.{line}" for line in config_changes(recipe, name, recorded.get("config", {}))]
    old, new = ({key: facts[key] for key in facts if key != "config"} for facts in (recorded, now))
    return lines + compare(old, new)


@contextmanager
def exclusive(run: RunDir) -> Iterator[None]:
    """Lock the run for this process; TagprError while another process works on it. The lock of a killed process is
    free."""
    run.root.mkdir(parents=True, exist_ok=True)
    with run.lock.open("a+", encoding="ascii") as handle:
        try:
            _lock(handle)
        except BlockingIOError:
            handle.seek(0)
            raise TagprError(
                f"run {run.root} is being worked on by process {handle.read().strip() or '?'}; "
                "wait for it or end it, then start this command again"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks: nobody is kept out
                raise
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _lock(handle: IO[str]) -> None:
    """Lock the open file. BlockingIOError if another process holds it longer than `working_process` does."""
    for _ in range(TRIES):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def working_process(run: RunDir) -> str | None:
    """The id of the process that holds the run now, or None. It may be one of another machine."""
    if not run.lock.is_file():
        return None
    with run.lock.open(encoding="ascii") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return handle.read().strip() or "?"
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
    return None
