"""What the command lines of several benchmarks share: lists of seeds, and this folder kept out of the workers' path."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def seeds(text: str) -> tuple[int, ...]:
    """`1,2,3` of a command line; a seed that stands twice is refused."""
    found = tuple(int(part) for part in text.split(","))
    if len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"a seed stands twice in {text!r}")
    return found


def leave_path() -> None:
    """Take this folder off sys.path: Ray's workers take the path over, and verl looks for a package `trl`, which
    trl.py beside this file is not."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
