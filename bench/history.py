"""Figures of benchmarks beside their own past: `bench/history.jsonl` keeps what each run of a benchmark wrote.

Add the JSON of a run, then compare: python bench/history.py add trl runs/bench_trl/trl.json --note "quiet"
Compare alone: python bench/history.py show [trl]

Nothing here passes or fails: machines differ, and a line has the processor's name for that. A figure is compared with
the median of its earlier values from the same kind of processor.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from shared import exit_with

from tagpr_rl.documents import read_document
from tagpr_rl.types import TagprError

HISTORY = Path(__file__).with_name("history.jsonl")
LEFT_OUT = ("environment", "trl_versions")
"""Parts of a benchmark's JSON that are no figures."""


def figures(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """(dotted name, number) of every number in a JSON value; lists of samples and what is LEFT_OUT are skipped."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield name, float(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in LEFT_OUT:
                yield from figures(inner, f"{name}.{key}".lstrip("."))


def processor() -> str:
    """The processor's name and the number of cores, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} x {len(names) or 1}"


def compare(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float | None, int]]:
    """(figure, newest value, median of the earlier ones or None, how many) of a benchmark's rows, oldest first.

    Earlier rows count if they have the newest row's processor.
    """
    newest = rows[-1]
    earlier = [row["figures"] for row in rows[:-1] if row["processor"] == newest["processor"]]
    lines = []
    for name, value in newest["figures"].items():
        past = [own[name] for own in earlier if name in own]
        lines.append((name, value, statistics.median(past) if past else None, len(past)))
    return lines


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of all benchmarks, oldest first."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def add(path: Path, bench: str, file: Path, note: str) -> None:
    """Append the figures of one run. TagprError if the file has none."""
    actual = dict(figures(read_document(file, "figures of a benchmark")))
    if not actual:
        raise TagprError(f"{file}: no number in it; give the JSON that a benchmark wrote")
    day = datetime.now(UTC).date().isoformat()
    row = {"bench": bench, "day": day, "processor": processor(), "note": note, "figures": actual}
    with path.open("a", encoding="utf-8") as history:
        history.write(json.dumps(row) + "\n")


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print a table for each benchmark."""
    for bench in dict.fromkeys(row["bench"] for row in rows):
        own = [row for row in rows if row["bench"] == bench]
        title = f"{bench}, {own[-1]['day']}, {own[-1]['processor']}"
        table = Table("figure", title=f"{title}: {own[-1]['note']}" if own[-1]["note"] else title)
        for heading in ("newest", "median before", "ratio", "runs before"):
            table.add_column(heading, justify="right")
        for name, value, past, count in compare(own):
            ratio = f"{value / past:.2f}" if past else ""
            table.add_row(name, f"{value:.4g}", "" if past is None else f"{past:.4g}", ratio, str(count or ""))
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="keep the figures of a run")
    adding.add_argument("bench", help="name of the benchmark: trl, start, driver ...")
    adding.add_argument("file", type=Path, help="the JSON that it wrote")
    adding.add_argument("--note", default="", help="what else the machine did, such as quiet")
    showing = commands.add_parser("show", help="the newest figures beside the past")
    showing.add_argument("bench", nargs="?", help="one benchmark alone")
    args = parser.parse_args()
    if args.command == "add":
        add(HISTORY, args.bench, args.file, args.note)
    rows = [row for row in read_history(HISTORY) if args.bench in (None, row["bench"])]
    if not rows:
        raise TagprError(f"{HISTORY}: nothing of {args.bench or 'any benchmark'} yet; add a run's JSON first")
    show(rows, Console(width=None if sys.stdout.isatty() else 140))


if __name__ == "__main__":
    exit_with(main)
