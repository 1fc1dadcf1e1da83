"""What a run is called at its trackers: one id for all stages and restarts, and steps that never go back.

A tracker counts one axis for the whole pipeline: the global step of a stage's step `n` is `n` plus the
steps of all training stages before it in the recipe. Nothing here imports a tracker.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagpr_rl.config import Recipe, training_steps
from tagpr_rl.files import write_json
from tagpr_rl.run.layout import RunDir
from tagpr_rl.types import TagprError

GLOBAL_STEP = "train/global_step"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECRET_KEY = re.compile(
    r"(?i)(^|_)(api_?key|secret|secret_?key|access_?key|access_?key_?id|passw(or)?d|credentials?|auth|"
    r"(api|auth|access|hf|hub|github|wandb|bearer|session|security)_?token)$|^token$"
)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")


def tracker_id(run: RunDir) -> str:
    """The run's id at its trackers, made on the first call and kept in `tracking.json`.

    Raises TagprError if that file is damaged: a new id would start a second W&B run.
    """
    path = run.tracking
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))["id"]
        if isinstance(identity, str) and _ID.fullmatch(identity):
            return identity
        problem = f"'id' is {identity!r}"
    except FileNotFoundError:
        fresh = uuid.uuid4().hex[:12]
        write_json(path, {"id": fresh})
        return fresh
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise TagprError(
        f'{path} does not hold the run\'s id ({problem}). Restore it as {{"id": "<W&B run id>"}}, '
        "or delete it to let the rest of the run be a new W&B run."
    )


def step_offset(recipe: Recipe, name: str) -> int:
    """Training steps of all stages before `name`: what its own steps are added to."""
    before = list(recipe.stages.values())[: list(recipe.stages).index(name)]
    return sum(map(training_steps, before))


class StepGate:
    """Accepts each global step once, in ascending order, over all processes of a run.

    A resumed stage repeats the steps after its checkpoint; the tracker has them from the first time.
    (`metrics.jsonl` holds the repeated ones, since the weights came from those.)
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.last = self._read()

    def _read(self) -> int:
        try:
            return int(self._path.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return -1

    def admit(self, step: int) -> bool:
        """True if `step` is above every accepted step; it then counts as sent."""
        if step <= self.last:
            return False
        temp = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temp.write_text(str(step), encoding="ascii")
        temp.replace(self._path)
        self.last = step
        return True


def without_secrets(value: Any) -> Any:
    """`value` (plain JSON) with texts under secret-looking keys, and logins in URLs, taken out."""
    if isinstance(value, Mapping):
        return {
            key: "(removed)" if isinstance(item, str) and _SECRET_KEY.search(str(key)) else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return _URL_LOGIN.sub("", value) if isinstance(value, str) else value
