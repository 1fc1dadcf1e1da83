"""The user's own data: people found without ids, prompt rows of gigabytes, metrics under mutated inputs.

Run: python bench/data.py [people] [rows] [metrics] [--quick] [--out data.json]
`people` reads the folder that the environment variable TAGPR_REAL names, and is left out without it: any folders of
official user-split files with train and dev, whose `user_id` is taken away and found again.
`rows` writes about 2.5 GB below the folder for temporary files. `metrics` needs rouge_score and scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tagpr_rl.data.lamp import load_folder, splits_present
from tagpr_rl.data.outputs import parse_golds
from tagpr_rl.data.people import link_users, require_setting, shared_people
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.eval.metrics import official_metrics
from tagpr_rl.eval.predictions import Answers, require_same_questions
from tagpr_rl.eval.provenance import code_version
from tagpr_rl.files import write_parquet
from tagpr_rl.prmu.training.preferences import split_by_user, users_of
from tagpr_rl.prompts.rows import prompt_schema, to_row
from tagpr_rl.types import LampRecord, PairRow, ProfileItem, Prompt, TagprError

BAR = 0.99
"""Least precision and recall of pairs of one person."""
GROUP_BYTES = 1 << 31
"""A row group of so many bytes is refused by pyarrow and `datasets`."""

# ---- people ----


def bench_people(quick: bool) -> dict[str, Any] | None:
    """Each folder and task below TAGPR_REAL with both splits: the people found without `user_id`."""
    root = os.environ.get("TAGPR_REAL")
    if not root:
        return None
    figures = {}
    for folder in sorted(path for path in Path(root).iterdir() if path.is_dir()):
        for task in TASKS:
            if set(splits_present(folder, task)) >= {"train", "dev"}:
                figures[f"{folder.name}/{task}"] = people_of(folder, task)
    return figures


def people_of(folder: Path, task: str) -> dict[str, Any]:
    """Precision and recall: of all pairs of questions of one task (train and dev together) that are linked, the share
    of one person's; of all pairs of one person's, the share that is linked."""
    known = [record for split in ("train", "dev") for record in load_folder(folder, [task], split)]
    start = time.process_time()
    linked = link_users([replace(record, user_id=record.id) for record in known])
    seconds = time.process_time() - start
    right = _pairs(Counter((a.user_id, b.user_id) for a, b in zip(known, linked, strict=True)))
    found, true = (_pairs(Counter(record.user_id for record in side)) for side in (linked, known))
    sides = [[record for record in linked if record.split == split] for split in ("train", "dev")]
    try:
        require_setting(sides[0], sides[1], "user", str(folder))
        refused = ""
    except TagprError as error:
        refused = str(error)
    return {
        "questions": len(known),
        "people": len({record.user_id for record in known}),
        "people_found": len({record.user_id for record in linked}),
        "pairs": true,
        "precision": right / max(1, found),
        "recall": right / max(1, true),
        "in_train_and_dev": len(shared_people(*sides)),
        "refused_as_user_split": bool(refused),
        "prmu_unseen_people_in_training": _prmu_overlap(known, sides[0]),
        "cpu_s": seconds,
    }


def _pairs(groups: Counter[Any]) -> int:
    return sum(n * (n - 1) // 2 for n in groups.values())


def _prmu_overlap(known: Sequence[LampRecord], train: Sequence[LampRecord]) -> int:
    """People (by the files' own ids) who stand in PRMU's training and unseen pairs, if a pair is made for each training
    question with the profile of the next question's person."""
    people = {(record.split, record.id): record.user_id for record in known}
    rows = [
        PairRow(own.id, own.task, own.user_id, other.user_id, "q", (), "a", "b", "cross_profile")
        for own, other in zip(train, [*train[1:], train[0]], strict=True)
        if own.user_id != other.user_id
    ]
    split = split_by_user(rows, seed=0)
    assert not users_of(split.train) & users_of(split.unseen)
    trained, unseen = (
        {people["train", row.record_id] for row in side} for side in ((*split.train, *split.seen), split.unseen)
    )
    return len(trained & unseen)


# ---- rows ----


def bench_rows(quick: bool) -> dict[str, Any]:
    """Prompt rows as LaMP_3's train file makes them, over 2 GiB of text: sizes of row groups, and readers."""
    import pyarrow.parquet as pq

    n = 400 if quick else 18_000
    text = "words of a review " * 38

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(n):
            items = tuple(ProfileItem(str(k), {"text": f"{i} {k} {text}", "score": "4"}) for k in range(185))
            own = LampRecord(str(i), "LaMP_3", "train", str(i), f"review: {text}", items, "4")
            messages = ({"role": "user", "content": own.input},)
            yield to_row(own, Prompt(own.id, own.task, own.user_id, messages, (), 0, False, 9), i)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.parquet"
        before, start = _peak_mib(), time.process_time()
        assert write_parquet(path, rows(), prompt_schema()) == n
        seconds, peak = time.process_time() - start, _peak_mib()
        meta = pq.ParquetFile(path).metadata
        groups = [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
        chars = n * 185 * len(text)
        figures = {
            "rows": n,
            "text_gib": chars / 2**30,
            "row_groups": len(groups),
            "largest_group_mib": max(groups) / 2**20,
            "write_cpu_s": seconds,
            "peak_mib_before": before,
            "peak_mib": peak,
        }
        table = pq.read_table(path)
        figures["pyarrow_reads"] = table.num_rows
        del table
        from datasets import load_dataset

        data = load_dataset("parquet", data_files=str(path), split="train", cache_dir=folder)
        figures["datasets_reads"] = len(data)
        assert data[n - 1]["extra_info"]["record_id"] == str(n - 1)
    return figures


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- metrics ----

ODD = (
    "", " ", "nan", "inf", "-inf", "1e308", "-1e308", "1e400", "5" * 160, "1" * 5000, "٣", "５", "1_0", "0x5", "1e-400",
    "5.0", " 4 ", "4\n", "+3", "3,5", "[1]", "[3]", "Comedy", "comedy.", "\x00", "\ud83d", "東京", "🙂", "None", "null",
    "a" * 10_000, "true", "1/0", "--5", "9" * 64, "9" * 65, "1e6", "1000001", "²",
)  # fmt: skip
"""Texts that are no answer, or look like another."""


def bench_metrics(quick: bool) -> dict[str, Any]:
    """Mutated golds and predictions: a clear error or finite numbers, and the libraries' numbers on the valid ones."""
    rng, n = random.Random(5), 2_000 if quick else 100_000
    counts: Counter[str] = Counter()
    worst = 0.0
    for _ in range(n):
        task = rng.choice(list(TASKS))
        golds = _outputs(rng, task, rng.randint(1, 8))
        preds = [{**row, "output": _answer(rng, task, str(row["output"]))} for row in golds]
        value_g, value_p = (
            {"task": task, "golds": rows} for rows in (_mutated(rng, golds, 0.1), _mutated(rng, preds, 0.2))
        )
        try:
            names, own = zip(*(parse_golds("f", json.loads(json.dumps(v))) for v in (value_g, value_p)), strict=True)
            require_same_questions(*(Answers(task, Path("f"), "", outputs) for outputs in reversed(own)))
            keys = list(own[0])
            answers, wanted = ([side[key] for key in keys] for side in (own[1], own[0]))
            users = [rng.choice("uvw") for _ in keys]
            results = official_metrics(names[0], answers, wanted, users, resamples=20, seed=1)
        except TagprError:
            counts["clear errors"] += 1
            continue
        counts["scored"] += 1
        numbers = {m.name: m.value for m in results}
        for m in results:
            json.dumps([m.value, m.low, m.high, m.user_macro], allow_nan=False)  # ValueError for what is not finite
            assert all(map(math.isfinite, (m.value, m.low, m.high)))
        oracle = _oracle(task, answers, wanted)
        if oracle is not None:
            counts["compared"] += 1
            worst = max(worst, *(abs(numbers[name] - oracle[name]) / max(1.0, abs(oracle[name])) for name in numbers))
    return {"inputs": n, **counts, "largest_difference_to_the_libraries": worst}


def _outputs(rng: random.Random, task: str, n: int) -> list[dict[str, Any]]:
    labels = TASKS[task].labels
    return [{"id": str(i), "output": rng.choice(labels) if labels else _words(rng)} for i in range(n)]


def _words(rng: random.Random) -> str:
    return " ".join(rng.choices(["red", "House", "of", "the", "sea,", "it's", "naïve", "3.5"], k=rng.randint(1, 12)))


def _answer(rng: random.Random, task: str, gold: str) -> str:
    labels = TASKS[task].labels
    other = rng.choice(labels) if labels else _words(rng)
    return rng.choice([gold, gold, other, f" {gold} ", gold.upper(), other + other])


def _mutated(rng: random.Random, rows: list[dict[str, Any]], share: float) -> list[Any]:
    """Some outputs become odd texts; now and then an entry is no entry, is missing, stands twice or lacks a key."""
    rows = [{**row, "output": rng.choice(ODD)} if rng.random() < share else row for row in rows]
    if rng.random() < 0.15:
        at = rng.randrange(len(rows))
        spoilt: list[Callable[[], list[Any]]] = [
            lambda: rows[:at] + rows[at + 1 :],
            lambda: [*rows, rows[at]],
            lambda: [*rows, rng.choice([None, 3, [], "x", {}])],
            lambda: (
                [*rows[:at], {**rows[at], "output": rng.choice([None, 3, 4.5, 10**20, True, [], {}])}, *rows[at + 1 :]]
            ),
            lambda: [*rows[:at], {**rows[at], "id": rng.choice([None, 7, "x", 1.5, [], " "])}, *rows[at + 1 :]],
            lambda: [{k: v for k, v in rows[at].items() if k != rng.choice(("id", "output"))}, *rows],
        ]
        return rng.choice(spoilt)()
    return rows


def _oracle(task: str, answers: Sequence[str], golds: Sequence[str]) -> dict[str, float] | None:
    """The libraries' numbers by the official rules; None where the official code fails or overflows."""
    from rouge_score.rouge_scorer import RougeScorer
    from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error

    spec = TASKS[task]
    answers, golds = [a.strip() for a in answers], [g.strip() for g in golds]
    if spec.kind == "classification":
        codes = {label: i for i, label in enumerate(spec.labels)}
        y, y_hat = [codes[g] for g in golds], [codes.get(a, -1) for a in answers]
        f1 = f1_score(y, y_hat, labels=list(range(len(codes))), average="macro", zero_division=0)
        return {"accuracy": accuracy_score(y, y_hat), "f1": f1}
    if spec.kind == "rating":
        numbers = [_official_rating(a, g) for a, g in zip(answers, golds, strict=True)]
        if any(number is None for number in numbers):
            return None
        y = [float(g) for g in golds]
        return {"MAE": mean_absolute_error(y, numbers), "RMSE": math.sqrt(mean_squared_error(y, numbers))}
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    scores = [scorer.score(g, a) for a, g in zip(answers, golds, strict=True)]
    mean = {key: sum(s[key].fmeasure for s in scores) / len(scores) for key in ("rouge1", "rougeL")}
    return {"rouge-1": mean["rouge1"], "rouge-L": mean["rougeL"]}


def _official_rating(answer: str, gold: str) -> float | None:
    try:
        value = float(answer)
    except ValueError:
        return 1.0 if abs(1 - float(gold)) > abs(5 - float(gold)) else 5.0
    return value if abs(value) <= 1e6 and len(answer) <= 64 else None


PARTS: dict[str, Callable[[bool], Any]] = {"people": bench_people, "rows": bench_rows, "metrics": bench_metrics}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    facts: dict[str, Any] = {"code": code_version(), "quick": arguments.quick}
    for name, run in PARTS.items():
        if not arguments.parts or name in arguments.parts:
            facts[name] = run(arguments.quick)
            print(f"{name}: {json.dumps(facts[name], indent=2)}", flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    missed = misses(facts)
    print("\n".join(missed) or "every bar is met")
    return 1 if missed else 0


def misses(facts: dict[str, Any]) -> list[str]:
    """The bars that these figures miss."""
    missed = []
    for name, own in (facts.get("people") or {}).items():
        if min(own["precision"], own["recall"]) < BAR:
            missed.append(f"missed: people: {name}: precision {own['precision']}, recall {own['recall']}")
        if own["prmu_unseen_people_in_training"]:
            missed.append(f"missed: people: {name}: PRMU trains on unseen people")
        if own["refused_as_user_split"] != bool(own["in_train_and_dev"]):
            missed.append(f"missed: people: {name}: the setting is not seen")
    if (rows := facts.get("rows")) and rows["largest_group_mib"] * 2**20 >= GROUP_BYTES / 4:
        missed.append("missed: rows: a row group of over 512 MiB")
    if (metrics := facts.get("metrics")) and metrics["largest_difference_to_the_libraries"] > 1e-12:
        missed.append("missed: metrics: difference above 1e-12")
    return missed


if __name__ == "__main__":
    sys.exit(main())
