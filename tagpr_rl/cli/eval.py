"""`tagpr eval`: predictions files in LaMP's format, scored. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tagpr_rl.chains.client.leftovers import turn_end
from tagpr_rl.cli.arguments import in_path, out_file, out_folder, say
from tagpr_rl.data.lamp import stream_lamp, write_predictions
from tagpr_rl.data.people import files_with_users, link_users
from tagpr_rl.data.tasks import task_name
from tagpr_rl.eval.controls import baseline_answers
from tagpr_rl.eval.lamp_eval import EvalResult, evaluate, question_key
from tagpr_rl.eval.predictions import (
    Answers,
    read_answers,
    read_golds,
    require_archive,
    require_same_questions,
    write_zip,
)
from tagpr_rl.eval.provenance import describe, metric_row
from tagpr_rl.files import write_json
from tagpr_rl.tags.schema import default_schema, load_schema
from tagpr_rl.tags.thoughts import begin_inside, closes_unopened, split_thought
from tagpr_rl.types import LampRecord, TagprError

Files = list[Path]
Baseline = Literal["constant", "majority", "random", "nearest"]


def _read(text: str, metavar: str = "FILE...") -> Any:
    return typer.Option(metavar=metavar, help=text, callback=in_path)


def command(
    golds: Annotated[Files, _read("Outputs: .json files or one .zip.")],
    preds: Annotated[Files | None, _read("Predictions: .json files or one .zip.")] = None,
    questions: Annotated[
        Files | None, _read("Users for intervals, profiles for the leak filter and baselines.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What a file that calls itself LaMP_2 means: LaMP_2 or LaMP_2N.")
    ] = None,
    split: Annotated[Literal["train", "dev", "test"], typer.Option(help="Stands in the result.")] = "dev",
    responses: Annotated[
        bool, typer.Option("--responses", help="Predictions hold thoughts; score what follows them.")
    ] = False,
    schema: Annotated[Path | None, _read("With --responses: the tag schema.", "FILE")] = None,
    baseline: Annotated[Baseline | None, typer.Option(help="Score a baseline instead of --preds.")] = None,
    constant: Annotated[str | None, typer.Option(metavar="TEXT", help="The constant baseline's answer.")] = None,
    train_golds: Annotated[Files | None, _read("What baselines learn from.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result as JSON.", callback=out_file)
    ] = None,
    write_preds: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write predictions files, <task>.json.", callback=out_folder)
    ] = None,
    write_archive: Annotated[
        Path | None,
        typer.Option("--write-zip", metavar="FILE", help="Write the official zip of seven files.", callback=out_file),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of bootstrap intervals and the random baseline.")] = 0,
) -> None:
    """Score official predictions files, of this or any other system: metrics with 95 % intervals over users.

    Example: tagpr eval --preds LaMP_2.json --golds data/lamp/LaMP_2/dev_outputs.json
    """
    gold_answers = _read_all(golds, task, read_golds)
    records, users = _questions(questions or (), gold_answers, split)
    if (preds is None) == (baseline is None):
        raise TagprError("eval: give either --preds or --baseline")
    predicted, training = _read_all(preds or (), task, read_answers), ""
    if baseline is not None:
        learned = _read_all(train_golds or (), task, read_golds)
        predicted, training = _baseline(baseline, constant, learned, gold_answers, records, split=split, seed=seed)
    _require_same_tasks(gold_answers, predicted)
    if write_archive is not None:
        require_archive(write_archive, predicted)
    tags = default_schema() if schema is None else load_schema(schema)
    asked, texts = _pairs(gold_answers, predicted, records, split)
    inside = _begin_inside(list(texts.values()), responses)
    result = evaluate(asked, texts, tags, prefilled=inside, thoughts=responses, seed=seed)
    predicted = _scored(predicted, result, responses)
    facts = _result_file(gold_answers, predicted, records, users, result, split, tags.sha256 if responses else None)
    if training:
        facts["baseline"] = {"name": baseline, "learned_from": training}
    _show(facts)
    if out is not None:
        write_json(out, facts)
    if write_preds is not None:
        for name, answers in predicted.items():
            write_predictions(write_preds / f"{name}.json", name, answers.outputs)
    if write_archive is not None:
        write_zip(write_archive, predicted.values())


def _require_same_tasks(golds: dict[str, Answers], preds: dict[str, Answers]) -> None:
    if set(preds) != set(golds):
        tasks = f"golds of {', '.join(golds)}, predictions of {', '.join(preds)}"
        raise TagprError(f"eval: {tasks}; name files of the same tasks")


def _begin_inside(texts: Sequence[str], responses: bool) -> bool:
    """Whether the texts begin inside a thought that their chat template opened. Says so, and warns of thoughts that
    would be scored as answers."""
    held = sum(split_thought(text) != ("", text) for text in texts)
    if held and not responses:
        say(f"thoughts: {held} of {len(texts)} texts hold one, scored as part of the answer; see --responses")
    inside = responses and begin_inside(texts)
    if inside:
        say("thoughts: most texts close a <think> that they do not open, so the chat template opened it")
    elif responses and (closing := sum(map(closes_unopened, texts))):
        say(
            f"thoughts: {closing} of {len(texts)} texts close a <think> that they do not open; if the chat template "
            "opened it, texts without </think> are unfinished thoughts, and here they are scored as answers: write "
            "<think> before each text"
        )
    return inside


def _scored(predicted: dict[str, Answers], result: EvalResult, responses: bool) -> dict[str, Answers]:
    """The answers that were scored, for the files to write. Says how many hold an end token."""
    answers = [question.answer for question in result.questions]
    if ended := [answer for answer in answers if turn_end(answer) < len(answer)]:
        say(
            f"end tokens: {len(ended)} of {len(answers)} answers hold one, and it is scored too (the first ends in "
            f"{ended[0][-40:]!r}); decode without special tokens"
        )
    if not responses:
        return predicted
    return {name: replace(own, outputs=result.answers(name)) for name, own in predicted.items()}


def _read_all(
    paths: Sequence[Path], task: str | None, read: Callable[[Path, str | None], dict[str, Answers]]
) -> dict[str, Answers]:
    by_task: dict[str, Answers] = {}
    for path in paths:
        for name, answers in read(path, task).items():
            if name in by_task:
                raise TagprError(f"{path}: {name} stands in {by_task[name].path}, too; give each task once")
            by_task[name] = answers
    return by_task


def _questions(paths: Sequence[Path], golds: dict[str, Answers], split: str) -> tuple[dict[str, list[LampRecord]], str]:
    """(task -> records with their golds, of the questions files given; where each task's users come from)."""
    by_task: dict[str, list[LampRecord]] = {}
    users = dict.fromkeys(golds, "unknown: each question counts as a user")
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
        users[task] = "user_id of the questions file"
        if not files_with_users(records):
            users[task] = "the questions file has no user_id, so people are questions with nearly the same profile"
        by_task[task] = [replace(record, gold=wanted[record.id]) for record in link_users(records)]
    same = len(set(users.values())) == 1
    said = [users[task] if same else f"{task}: {users[task]}" for task in users]
    return by_task, said[0] if same else "; ".join(said)


def _task_of(path: Path, golds: dict[str, Answers]) -> str:
    """The task of a questions file: its folder's, or the only one there is."""
    if path.parent.name.replace("-", "_") in golds:
        return task_name(path.parent.name)
    if len(golds) == 1:
        return next(iter(golds))
    raise TagprError(f"{path}: which of {', '.join(golds)} is this? Put it into a folder named after its task")


def _bare_records(golds: Answers, split: str) -> list[LampRecord]:
    """Without the questions: every id its own user, no profile."""
    name = golds.task
    return [LampRecord(key, name, split, f"{name}/{key}", "?", (), gold) for key, gold in golds.outputs.items()]


def _pairs(
    golds: dict[str, Answers], preds: dict[str, Answers], questions: dict[str, list[LampRecord]], split: str
) -> tuple[list[LampRecord], dict[str, str]]:
    """(records of all tasks, question key -> predicted text). TagprError if a question has no prediction."""
    records, texts = [], {}
    for task, gold in golds.items():
        require_same_questions(preds[task], gold)
        for record in questions.get(task) or _bare_records(gold, split):
            records.append(record)
            texts[question_key(record)] = preds[task].outputs[record.id]
    return records, texts


def _baseline(
    name: Baseline,
    constant: str | None,
    learned: dict[str, Answers],
    golds: dict[str, Answers],
    questions: dict[str, list[LampRecord]],
    *,
    split: str,
    seed: int,
) -> tuple[dict[str, Answers], str]:
    """(task -> the baseline's answers, where it learned from)."""
    if name == "nearest" and (bare := [task for task in golds if task not in questions]):
        raise TagprError(f"eval --baseline nearest: needs profiles; give --questions for {', '.join(bare)}")
    source, training = learned, "training golds"
    if not learned and name != "constant":
        source = golds
        training = "the very golds it is scored on, since no --train-golds were given: more than any baseline may know"
    known = {task: list(answers.outputs.values()) for task, answers in source.items()}
    records = [r for task, gold in golds.items() for r in questions.get(task) or _bare_records(gold, split)]
    texts = baseline_answers(name, records, known, constant=constant, seed=seed)
    answers: dict[str, Answers] = {}
    for task, gold in golds.items():
        own = {r.id: texts[question_key(r)] for r in records if r.task == task}
        answers[task] = replace(gold, outputs=own, path=Path(f"baseline {name}"), sha256="")
    return answers, training if name != "constant" else f"nothing: always {constant!r}"


def _result_file(
    golds: dict[str, Answers],
    preds: dict[str, Answers],
    questions: dict[str, list[LampRecord]],
    users: str,
    result: EvalResult,
    split: str,
    schema_sha256: str | None,
) -> dict[str, Any]:
    dated = [all(item.date for item in r.profile) for own in questions.values() for r in own if r.profile]
    setting = "unknown" if not dated else "time" if all(dated) else "user"
    by_user = all(task in questions for task in golds)
    facts = describe(
        golds,
        split=split,
        setting=setting,
        prompt_sha256=None,
        schema_sha256=schema_sha256,
        decoding=None,
        n=result.n,
        n_users=result.n_users,
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
        "users": users,
        "n": result.n,
        "n_users": result.n_users,
        "n_unparsable": result.n_unparsable,
        "metrics": [metric_row(metric) for metric in result.metrics],
        "n_leaks": result.n_leaks if by_user else None,
        "metrics_without_leaks": [metric_row(metric) for metric in result.metrics_without_leaks],
        "strict_parse_rate": result.strict_rate if schema_sha256 is not None else None,
        "parse_counts": dict(result.parse_counts) if schema_sha256 is not None else None,
        "truncated": result.truncated if schema_sha256 is not None else None,
        "score": {"value": result.score, "low": result.score_low, "high": result.score_high},
        "user_macro_score": result.user_macro_score,
    }


def _show(facts: dict[str, Any]) -> None:
    for row in facts["metrics"]:
        macro = "" if row["user_macro"] is None else f", mean over users {row['user_macro']:.4f}"
        say(
            f"{row['task']} {row['name']} {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}] "
            f"({row['direction']}; n {row['n']}, {row['n_unparsable']} unparsable{macro})"
        )
    for row in facts["metrics_without_leaks"]:
        say(f"{row['task']} {row['name']} {row['value']:.4f} without leaked golds (n {row['n']})")
    if facts["strict_parse_rate"] is not None:
        say(
            f"well-formed responses: {facts['strict_parse_rate']:.4f}; unfinished thoughts, which have no answer: "
            f"{facts['truncated']:.4f}"
        )
    if "baseline" in facts:
        say(f"baseline {facts['baseline']['name']}, learned from {facts['baseline']['learned_from']}")
    say(f"users: {facts['users']}; interval: {facts['interval']}")
