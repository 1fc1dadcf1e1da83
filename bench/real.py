"""Models of finished runs beside baselines and other systems' published answers, on the very same real questions.

Run: python bench/real.py --lamp <LaMP folder> RUN [RUN ...] [--peers <folder>] [--pair <row>:<row>] [--controls]
A RUN is a run's folder; every model of its last evaluation is a row, `<run>/<model>`. With --controls the final model's
answers to shuffled and empty profiles are rows too; they answer fewer questions. The folder given by
--peers (default: <LaMP folder>/peers, if there is one) holds LaMP's prediction files, one per system. A row answers the
questions that all rows of its task answer, so that every number of a column has the same questions; `n` says how many.
Prints a Markdown table per task with official metrics, 95 % intervals over people, and paired differences of the task
score over people. Nothing is trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from rich.console import Console
from shared import exit_with, finish

from tagpr_rl.data.lamp import load_folder
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.eval.controls import baselines
from tagpr_rl.eval.lamp_eval import EvalResult, evaluate, question_key
from tagpr_rl.eval.metrics import paired_difference
from tagpr_rl.eval.predictions import read_answers
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, TagprError

CONTROLS = ("shuffled", "empty")
Answers = Mapping[str, str]
"""Question id -> answer."""


@dataclass(frozen=True, slots=True)
class Table:
    """One task's rows over the same questions."""

    task: str
    n: int
    people: int
    rows: Mapping[str, EvalResult]
    repeated: int
    """Questions whose text also stands in a training question."""
    without_repeated: Mapping[str, EvalResult]
    """The rows without those questions; empty if there are none, or nothing else."""


def table_of(
    task: str, train: Sequence[LampRecord], dev: Sequence[LampRecord], systems: Mapping[str, Answers]
) -> Table:
    """The rows of one task: majority, nearest item, then `systems` (name -> answers) in their order.

    TagprError if the systems have no question in common.
    """
    records = [record for record in dev if all(record.id in answers for answers in systems.values())]
    if not records:
        raise TagprError(f"{task}: no question is answered by all of {', '.join(systems)}")
    texts = {record.input for record in train}
    fresh = [record for record in records if record.input not in texts]
    rows = {}
    without = {}
    for name, given in baselines(train, records).items():
        if name != "random":
            rows[name] = _scored(records, {record.id: given[question_key(record)] for record in records})
    for name, answers in systems.items():
        rows[name] = _scored(records, answers)
        if 0 < len(fresh) < len(records):
            without[name] = _scored(fresh, answers)
    people = len({record.user_id for record in records})
    return Table(task, len(records), people, rows, len(records) - len(fresh), without)


def _scored(records: Sequence[LampRecord], answers: Answers) -> EvalResult:
    responses = {question_key(record): answers[record.id] for record in records}
    return evaluate(records, responses, default_schema(), thoughts=False)


def difference(table: Table, first: str, second: str) -> tuple[float, float, float]:
    """(mean, low, high) of the task score of row `first` minus that of `second`, with the interval over people."""
    for name in (first, second):
        if name not in table.rows:
            raise TagprError(f"{table.task} has no row {name!r}; its rows: {', '.join(table.rows)}")
    one, two = table.rows[first], table.rows[second]
    return paired_difference(one.scores(), two.scores(), one.users())


def systems_of(runs: Sequence[Path], peers: Path | None, *, controls: bool = False) -> dict[str, dict[str, Answers]]:
    """Task -> system -> answers, from the runs' last evaluations, with their controls if so, and the peers' files."""
    found: dict[str, dict[str, Answers]] = {}
    for run in runs:
        folders = sorted(run.glob("*/predictions"))
        if not folders:
            raise TagprError(f"{run}: no finished evaluation; give the folder of a run with an evaluate stage")
        for file in sorted(folders[-1].glob("*/*.json")):
            if file.parent.name in CONTROLS and not controls:
                continue
            (answers,) = read_answers(file, file.stem).values()
            found.setdefault(answers.task, {})[f"{run.name}/{file.parent.name}"] = answers.outputs
    for file in sorted(peers.glob("*.json")) if peers is not None else ():
        # A peer's file is named after its task: LaMP_2N_<system>.json.
        tasks = [name for name in TASKS if file.stem.startswith(f"{name}_")]
        (answers,) = read_answers(file, tasks[0] if tasks else None).values()
        if answers.task in found:
            found[answers.task][file.stem.removeprefix(f"{answers.task}_")] = answers.outputs
    return found


def markdown(table: Table, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The table as lines of Markdown, then a line for each pair."""
    metrics = [metric.name for metric in next(iter(table.rows.values())).metrics]
    lines = [
        f"### {table.task}: {table.n} questions of {table.people} people",
        "",
        f"| system | {' | '.join(metrics)} |",
        f"|---|{'---|' * len(metrics)}",
    ]
    for name, result in table.rows.items():
        cells = [f"{m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" for m in result.metrics]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if table.without_repeated:
        lines += ["", f"Without the {table.repeated} questions whose text also occurs in training:", ""]
        for name, result in table.without_repeated.items():
            lines.append(f"- {name}: " + ", ".join(f"{m.name} {m.value:.3f}" for m in result.metrics))
    for first, second in pairs:
        mean, low, high = difference(table, first, second)
        lines += ["", f"{first} - {second}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]"]
    return [*lines, ""]


def _pair(text: str) -> tuple[str, str]:
    first, _, second = text.partition(":")
    if not first or not second:
        raise argparse.ArgumentTypeError(f"{text!r} is no pair; write <row>:<row>")
    return first, second


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--lamp", type=Path, required=True)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--pair", type=_pair, action="append", default=[])
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("real.json"))
    given = parser.parse_args()
    peers = given.peers or (given.lamp / "peers" if (given.lamp / "peers").is_dir() else None)
    facts: dict[str, Any] = {}
    for task, systems in systems_of(given.runs, peers, controls=given.controls).items():
        train, dev = (load_folder(given.lamp, [task], split) for split in ("train", "dev"))
        table = table_of(task, train, dev, systems)
        print("\n".join(markdown(table, given.pair)))
        facts[task] = {
            "questions": table.n,
            "people": table.people,
            "rows": {name: [_metric(m) for m in row.metrics] for name, row in table.rows.items()},
            "repeated": table.repeated,
            "without_repeated": {
                name: [_metric(m) for m in row.metrics] for name, row in table.without_repeated.items()
            },
            "pairs": {f"{a}:{b}": difference(table, a, b) for a, b in given.pair},
        }
    finish(given.out, facts, Console())


def _metric(metric: Any) -> dict[str, Any]:
    return {"name": metric.name, "value": metric.value, "low": metric.low, "high": metric.high}


if __name__ == "__main__":
    exit_with(main)
