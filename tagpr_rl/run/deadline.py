"""A request to save and end, which a scheduler's script passes on as SIGUSR1 before the time limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARKER = "save_now"
"""A file in the stage's folder: the trainer saves after its step and ends."""
_stage: Path | None = None


@contextmanager
def saves_on_request(stage: Path) -> Iterator[None]:
    """In the block, the trainer of the stage in this folder looks for the marker after every step."""
    global _stage
    marker = stage / MARKER
    marker.unlink(missing_ok=True)
    _stage = stage
    try:
        yield
    finally:
        _stage = None
    if marker.exists():
        marker.unlink()
        raise KeyboardInterrupt


def request() -> bool:
    """Ask the stage in progress to save and end; False if there is none that can."""
    if _stage is None:
        return False
    (_stage / MARKER).touch()
    return True
