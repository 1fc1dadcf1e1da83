"""`launch.py data` and `launch.py eval`: LaMP's files checked, fetched and ranked; predictions scored. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tagpr_rl.data.check import check_folder
from tagpr_rl.data.check import describe as describe_check
from tagpr_rl.data.download import BASE, PUBLISHED, SETTINGS, addresses, fetch
from tagpr_rl.data.lamp import SPLITS, load_folder, stream_lamp, write_predictions
from tagpr_rl.data.tasks import TASKS, task_name
from tagpr_rl.eval.controls import BASELINES, baseline_answers
from tagpr_rl.eval.describe import describe, metric_row
from tagpr_rl.eval.files import Answers, read_answers, require_same_questions, write_zip
from tagpr_rl.eval.lamp_eval import EvalResult, evaluate, question_key
from tagpr_rl.files import write_json
from tagpr_rl.prompts.rankings import rankings_path, write_rankings
from tagpr_rl.prompts.retrieve import TIES, Retriever
from tagpr_rl.tags.schema import default_schema, load_schema
from tagpr_rl.types import LampRecord, TagprError


def add_data(commands: Any) -> None:
    """The `data` command: check, download, rank."""
    data = commands.add_parser("data", help="check, download or rank LaMP's official files")
    what = data.add_subparsers(dest="what", required=True)

    check = what.add_parser("check", help="counts, sha256, refused records and defects of every file in a folder")
    check.add_argument("folder", type=Path, metavar="DIR", help="holds <task>/<split>_questions.json")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the findings there, too")

    download = what.add_parser("download", help="fetch official files; goes on with what is there")
    download.add_argument("folder", type=Path, metavar="DIR")
    download.add_argument("--setting", choices=SETTINGS, default="user", help="which of the benchmark's two splits")
    download.add_argument("--base", default=BASE, metavar="URL", help=f"default: {BASE}")

    rank = what.add_parser("rank", help="write upstream's rankings file, {question id: [item ids]}, per task")
    rank.add_argument("folder", type=Path, metavar="DIR")
    rank.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets <task>.json")
    rank.add_argument("--method", choices=("bm25", "dense", "recency", "random"), default="bm25")
    rank.add_argument("--ties", choices=TIES, default="official")
    rank.add_argument("--encoder", type=Path, metavar="FOLDER", help="dense: a Hugging Face encoder")
    rank.add_argument("--cache", type=Path, metavar="FOLDER", help="dense: computed embeddings")
    rank.add_argument("--seed", type=int, default=0, help="of random")
    for command in (check, download, rank):
        command.add_argument("--tasks", nargs="+", default=None, metavar="TASK", help="default: all there are")
        command.add_argument("--splits", nargs="+", choices=SPLITS, default=None)


def add_eval(commands: Any) -> None:
    """The `eval` command."""
    command = commands.add_parser("eval", help="score official predictions files, of this or any other system")
    command.add_argument("--preds", type=Path, nargs="+", metavar="FILE", help="predictions: .json files or one .zip")
    command.add_argument("--golds", type=Path, nargs="+", required=True, metavar="FILE", help="outputs: .json or .zip")
    command.add_argument(
        "--questions", type=Path, nargs="+", default=[], metavar="FILE",
        help="questions files: users for intervals, profiles for the leak filter and baselines",
    )  # fmt: skip
    command.add_argument("--task", help="what a file that calls itself LaMP_2 means: LaMP_2 or LaMP_2N")
    command.add_argument("--split", choices=SPLITS, default="dev", help="stands in the result")
    command.add_argument("--responses", action="store_true", help="predictions hold thoughts; score what follows them")
    command.add_argument("--schema", type=Path, metavar="FILE", help="with --responses: the tag schema")
    command.add_argument("--baseline", choices=BASELINES, help="score a baseline instead of --preds")
    command.add_argument("--constant", metavar="TEXT", help="the constant baseline's answer")
    command.add_argument("--train-golds", type=Path, nargs="+", default=[], metavar="FILE", help="for baselines")
    command.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    command.add_argument(
        "--write-preds", type=Path, metavar="DIR", help="write official predictions files, <task>.json"
    )
    command.add_argument("--write-zip", type=Path, metavar="FILE", help="write the official zip of seven files")
    command.add_argument("--seed", type=int, default=0)


def run_data(arguments: argparse.Namespace, console: Console) -> int:
    """`launch.py data check|download|rank`; 1 when a check refused a record."""
    tasks = [task_name(task) for task in arguments.tasks] if arguments.tasks else None
    return {"check": _check, "download": _download, "rank": _rank}[arguments.what](arguments, tasks, console)


def _check(arguments: argparse.Namespace, tasks: list[str] | None, console: Console) -> int:
    found = []
    for one in check_folder(arguments.folder, tasks or TASKS, arguments.splits or SPLITS):
        found.append(one)
        for line in describe_check(one):
            _say(console, line)
    if arguments.json is not None:
        rows = [{**asdict(one), "setting": one.setting} for one in found]
        write_json(arguments.json, [{**row, "questions": str(row["questions"]), "outputs": str(row["outputs"])}
                                    for row in rows])  # fmt: skip
    return 0 if all(one.fine for one in found) else 1


def _download(arguments: argparse.Namespace, tasks: list[str] | None, console: Console) -> int:
    chosen = tasks or [task for task in TASKS if task != "LaMP_6"]
    for task in chosen:
        for split in arguments.splits or SPLITS:
            for url, path in addresses(arguments.folder, task, split, arguments.setting, arguments.base):
                one = fetch(url, path, task, split, say=lambda line: _say(console, line))
                note = ""
                if arguments.setting == "time" and task in PUBLISHED:
                    published = PUBLISHED[task][SPLITS.index(split)]
                    note = "" if one.n_records == published else f" (published: {published})"
                _say(console, f"{one.how}: {one.path}, {one.n_bytes} bytes, {one.n_records} records{note}")
    return 0


def _rank(arguments: argparse.Namespace, tasks: list[str] | None, console: Console) -> int:
    splits = arguments.splits or ["dev"]
    if len(splits) > 1:
        raise TagprError("data rank: one split at a time; question ids repeat across splits")
    similarity = None
    if (arguments.method == "dense") != (arguments.encoder is not None):
        raise TagprError("data rank: --encoder goes with --method dense")
    if arguments.encoder is not None:
        from tagpr_rl.model.encode import Encoder

        similarity = Encoder(arguments.encoder).store(arguments.cache or arguments.out / "embeddings").similarity
    every = 1 << 30  # the whole profile
    retriever = Retriever(every, arguments.method, arguments.seed, arguments.ties, similarity)
    for task in tasks or [task for task in TASKS if (arguments.folder / task).is_dir()]:
        path = rankings_path(arguments.out, task)
        n = write_rankings(path, load_folder(arguments.folder, [task], splits[0]), retriever)
        _say(console, f"{path}: {n} questions ranked by {arguments.method}")
    return 0


def run_eval(arguments: argparse.Namespace, console: Console) -> int:
    """`launch.py eval`."""
    golds = _read_all(arguments.golds, arguments.task)
    questions = _questions(arguments.questions, golds, arguments.split)
    if (arguments.preds is None) == (arguments.baseline is None):
        raise TagprError("eval: give either --preds or --baseline")
    training = ""
    if arguments.baseline is not None:
        preds, training = _baseline(arguments, golds, questions)
    else:
        preds = _read_all(arguments.preds, arguments.task)
    missing = [task for task in golds if task not in preds]
    if missing or len(preds) != len(golds):
        raise TagprError(
            f"eval: golds of {', '.join(golds)}, predictions of {', '.join(preds)}; name files of the same tasks"
        )
    schema = load_schema(arguments.schema) if arguments.schema is not None else default_schema()
    records, texts = [], {}
    for task, gold in golds.items():
        require_same_questions(preds[task], gold)
        for record in questions.get(task) or _bare_records(gold, arguments.split):
            records.append(record)
            texts[question_key(record)] = preds[task].outputs[record.id]
    result = evaluate(records, texts, schema, thoughts=arguments.responses, seed=arguments.seed)
    facts = _result_file(arguments, golds, preds, questions, result, schema.sha256 if arguments.responses else None)
    if training:
        facts["baseline"] = {"name": arguments.baseline, "learned_from": training}
    _show(console, facts)
    if arguments.out is not None:
        write_json(arguments.out, facts)
    if arguments.write_preds is not None:
        for task, answers in preds.items():
            write_predictions(arguments.write_preds / f"{task}.json", task, answers.outputs)
    if arguments.write_zip is not None:
        write_zip(arguments.write_zip, preds.values())
    return 0


def _read_all(paths: Sequence[Path], task: str | None) -> dict[str, Answers]:
    found: dict[str, Answers] = {}
    for path in paths:
        for name, answers in read_answers(path, task).items():
            if name in found:
                raise TagprError(f"{path}: {name} stands in {found[name].path}, too; give each task once")
            found[name] = answers
    return found


def _questions(paths: Sequence[Path], golds: dict[str, Answers], split: str) -> dict[str, list[LampRecord]]:
    """Task -> records with their golds, of the questions files given."""
    found: dict[str, list[LampRecord]] = {}
    for path in paths:
        task = _task_of(path, golds)
        records = list(stream_lamp(path, None, split, task=task))
        ids, wanted = {record.id for record in records}, golds[task].outputs
        if ids != set(wanted):
            odd = sorted(ids ^ set(wanted))
            raise TagprError(
                f"{path} and {golds[task].path}: {len(odd)} ids stand in one of them only, first {odd[0]!r}; "
                "they must be of the same split"
            )
        found[task] = [replace(record, gold=wanted[record.id]) for record in records]
    return found


def _task_of(path: Path, golds: dict[str, Answers]) -> str:
    """The task of a questions file: its folder's, or the only one there is."""
    if path.parent.name.replace("-", "_") in golds:
        return task_name(path.parent.name)
    if len(golds) == 1:
        return next(iter(golds))
    raise TagprError(f"{path}: which of {', '.join(golds)} is this? Put it into a folder named after its task")


def _bare_records(golds: Answers, split: str) -> list[LampRecord]:
    """Without the questions: every id its own user, no profile."""
    return [LampRecord(key, golds.task, split, key, "?", (), gold) for key, gold in golds.outputs.items()]


def _baseline(
    arguments: argparse.Namespace, golds: dict[str, Answers], questions: dict[str, list[LampRecord]]
) -> tuple[dict[str, Answers], str]:
    """(task -> the baseline's answers, where it learned from)."""
    if arguments.baseline == "nearest" and (bare := [task for task in golds if task not in questions]):
        raise TagprError(f"eval --baseline nearest: needs profiles; give --questions for {', '.join(bare)}")
    known = {task: list(one.outputs.values()) for task, one in _read_all(arguments.train_golds, arguments.task).items()}
    training = "training golds"
    if not known and arguments.baseline != "constant":
        known = {task: list(one.outputs.values()) for task, one in golds.items()}
        training = "the very golds it is scored on, since no --train-golds were given: more than any baseline may know"
    records = [r for task, gold in golds.items() for r in questions.get(task) or _bare_records(gold, arguments.split)]
    answers = baseline_answers(arguments.baseline, records, known, constant=arguments.constant, seed=arguments.seed)
    made: dict[str, Answers] = {}
    for task, gold in golds.items():
        own = {r.id: answers[question_key(r)] for r in records if r.task == task}
        made[task] = replace(gold, outputs=own, path=Path(f"baseline {arguments.baseline}"), sha256="")
    return made, training if arguments.baseline != "constant" else f"nothing: always {arguments.constant!r}"


def _result_file(
    arguments: argparse.Namespace,
    golds: dict[str, Answers],
    preds: dict[str, Answers],
    questions: dict[str, list[LampRecord]],
    result: EvalResult,
    schema_sha256: str | None,
) -> dict[str, Any]:
    dated = [all(item.date for item in r.profile) for own in questions.values() for r in own if r.profile]
    setting = "unknown" if not dated else "time" if all(dated) else "user"
    by_user = all(task in questions for task in golds)
    facts = describe(
        golds,
        split=arguments.split,
        setting=setting,
        prompt_sha256=None,
        schema_sha256=schema_sha256,
        decoding=None,
    )
    return facts | {
        "files": {
            task: {
                "predictions": str(preds[task].path),
                "predictions_sha256": preds[task].sha256 or None,
                "golds": str(golds[task].path),
                "golds_sha256": golds[task].sha256,
            }
            for task in golds
        },
        "users": "from the questions files" if by_user else "unknown: each question counts as a user",
        "n": result.n,
        "n_users": result.n_users,
        "n_unparsable": result.n_unparsable,
        "metrics": [metric_row(metric) for metric in result.metrics],
        "n_leaks": result.n_leaks if by_user else None,
        "metrics_without_leaks": [metric_row(metric) for metric in result.metrics_without_leaks],
        "strict_parse_rate": result.strict_rate if arguments.responses else None,
        "parse_counts": dict(result.parse_counts) if arguments.responses else None,
        "score": {"value": result.score, "low": result.score_low, "high": result.score_high},
        "user_macro_score": result.user_macro_score,
    }


def _show(console: Console, facts: dict[str, Any]) -> None:
    for row in facts["metrics"]:
        macro = "" if row["user_macro"] is None else f", mean over users {row['user_macro']:.4f}"
        _say(
            console,
            f"{row['task']} {row['name']} {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}] "
            f"({row['direction']}; n {row['n']}, {row['n_unparsable']} unparsable{macro})",
        )
    for row in facts["metrics_without_leaks"]:
        _say(console, f"{row['task']} {row['name']} {row['value']:.4f} without leaked golds (n {row['n']})")
    if facts["strict_parse_rate"] is not None:
        _say(console, f"well-formed responses: {facts['strict_parse_rate']:.4f}")
    if "baseline" in facts:
        _say(console, f"baseline {facts['baseline']['name']}, learned from {facts['baseline']['learned_from']}")
    _say(console, f"users: {facts['users']}; interval: {facts['interval']}")


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
