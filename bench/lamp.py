"""LaMP's bars side by side: rankings and ROUGE against their libraries, metrics, rewards, streaming, real records.

Run: python bench/lamp.py [--quick] [--out lamp.json] [--lamp-real FOLDER]
Times are CPU seconds of one process. Needs rank_bm25, rouge_score and scikit-learn beside the project.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from rank_bm25 import BM25Okapi
from rouge_score.rouge_scorer import RougeScorer

from tagpr_rl.data.lamp import load_folder
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.eval.controls import baselines
from tagpr_rl.eval.lamp_eval import evaluate
from tagpr_rl.eval.metrics import accuracy, macro_f1, official_metrics
from tagpr_rl.eval.provenance import code_version
from tagpr_rl.prompts import retrieve
from tagpr_rl.prompts.bm25 import IndexCache
from tagpr_rl.prompts.prompt import build_official_prompt, build_prompt
from tagpr_rl.prompts.retrieve import query_and_texts, rank
from tagpr_rl.prompts.tokens import WordTokens
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.reward.task import rouge
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, ProfileItem

BARS = {"bm25_ratio": 50.0, "rouge_ratio": 15.0, "responses_per_second": 20_000.0, "stream_mib": 1024.0, "error": 1e-12}
ROOT = Path(__file__).resolve().parents[1]


class Words:
    """Made-up words, as frequent as words are (1/rank), now and then with unicode and punctuation."""

    def __init__(self, rng: random.Random, size: int) -> None:
        letters = "etaoinshrdlucmfwypvbgk"
        self.rng = rng
        self.pool = ["".join(rng.choices(letters, k=rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9]))) for _ in range(size)]
        self.pool[40::50] = rng.choices(
            ["naïve", "東京", "don't", "e-mail", "Ünï", "3.5", "“so”", "—", "x,"], k=len(self.pool[40::50])
        )
        self.cumulative = np.cumsum([1 / (n + 1) for n in range(size)]).tolist()

    def text(self, n: int) -> str:
        return " ".join(self.rng.choices(self.pool, cum_weights=self.cumulative, k=n))


def cpu(run: Callable[[], Any]) -> tuple[float, Any]:
    """(CPU seconds, result); without the garbage collector, as in `timeit`."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        result = run()
        return time.process_time() - start, result
    finally:
        gc.enable()


# ---- BM25 ----


def users(rng: random.Random, n_users: int, n_queries: int) -> list[list[LampRecord]]:
    """Per user `n_queries` records with one profile: sizes and lengths as in LaMP; ties, empty and one-word items."""
    words, actual = Words(rng, 20_000), []
    tasks = ["LaMP_2", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_7"]
    lengths = {"LaMP_2": 60, "LaMP_3": 120, "LaMP_4": 30, "LaMP_5": 150, "LaMP_7": 18}
    for user in range(n_users):
        task = tasks[user % len(tasks)]
        spec, mean = TASKS[task], lengths[task]
        items: list[ProfileItem] = []
        for n in range(max(1, int(rng.gammavariate(2.0, 45 if task != "LaMP_7" else 8)))):
            kind = rng.random()
            text = (
                ""
                if kind < 0.02
                else words.text(1)
                if kind < 0.04
                else words.text(max(1, int(rng.gauss(mean, mean / 3))))
            )
            if items and kind > 0.97:  # the same text once more: a tie
                items.append(ProfileItem(f"{user}-{n}", rng.choice(items).fields))
                continue
            items.append(ProfileItem(f"{user}-{n}", {key: text if key != "score" else "3" for key in spec.item_keys}))
        profile = tuple(items)
        questions = [words.text(max(1, int(rng.gauss(mean, mean / 3)))) for _ in range(n_queries)]
        actual.append(
            [
                LampRecord(f"{user}/{q}", task, "dev", str(user), spec.make_input(text=t), profile)
                for q, t in enumerate(questions)
            ]
        )
    return actual


def as_upstream(record: LampRecord) -> list[str]:
    """The whole profile as `rank_profiles.py` ranks it: an index for every question."""
    query, texts = query_and_texts(record)
    corpus = [text.split() for text in texts]
    if not any(corpus):  # the library divides by zero
        return [item.id for item in record.profile][::-1]
    return [item.id for item in BM25Okapi(corpus).get_top_n(query.split(), list(record.profile), n=len(texts))]


def bench_bm25(quick: bool) -> dict[str, Any]:
    n_users, n_queries = (10, 100) if quick else (200, 100)
    people = users(random.Random(0), n_users, n_queries)
    records = [record for own in people for record in own]
    ours_s, ours = cpu(lambda: [[item.id for item in rank(record, 1 << 30)] for record in records])
    theirs_s, reference = cpu(lambda: [as_upstream(record) for record in records])
    differing = sum(a != b for a, b in zip(ours, reference, strict=True))

    def index_once() -> None:
        for own in people:
            _, texts = query_and_texts(own[0])
            index = BM25Okapi([text.split() for text in texts])
            for record in own:
                query, texts = query_and_texts(record)
                index.get_top_n(query.split(), list(record.profile), n=len(texts))

    library_once_s, _ = cpu(index_once)
    firsts = [own[0] for own in people]
    retrieve._INDEXES = IndexCache()
    fresh_s, _ = cpu(lambda: [rank(record, 1 << 30) for record in firsts])
    library_fresh_s, _ = cpu(lambda: [as_upstream(record) for record in firsts])
    ties = sum(len(set(texts)) < len(texts) for _, texts in map(query_and_texts, firsts))
    return {
        "pairs": len(records), "profiles": n_users, "queries_per_profile": n_queries,
        "items_mean": sum(len(r.profile) for r in firsts) / n_users, "profiles_with_equal_texts": ties,
        "rankings_that_differ": differing,
        "ours_s": ours_s, "library_s": theirs_s, "ratio": theirs_s / ours_s,
        "library_with_one_index_per_profile_s": library_once_s, "ratio_to_that": library_once_s / ours_s,
        "one_query_per_profile": {"ours_s": fresh_s, "library_s": library_fresh_s, "ratio": library_fresh_s / fresh_s},
    }  # fmt: skip


# ---- ROUGE ----


def rouge_pairs(rng: random.Random, n: int) -> list[tuple[str, str]]:
    """(prediction, gold): headlines, titles and tweets, with unicode, empty and long texts; half share most words."""
    words, pairs = Words(rng, 5_000), []
    for at in range(n):
        kind = at % 20
        length = (
            rng.randint(5, 14)
            if kind < 10
            else rng.randint(12, 30)
            if kind < 17
            else rng.randint(60, 120)
            if kind < 19
            else 200
        )
        gold = words.text(length)
        pred = words.text(rng.randint(max(1, length // 2), length * 2))
        if rng.random() < 0.5:
            parts = gold.split()
            for _ in range(rng.randint(0, length // 2)):
                parts[rng.randrange(length)] = words.text(1)
            pred = " ".join(parts).capitalize() + "."
        pairs.append(("" if rng.random() < 0.01 else pred, "" if rng.random() < 0.01 else gold))
    return pairs


def bench_rouge(quick: bool) -> dict[str, Any]:
    pairs = rouge_pairs(random.Random(1), 400 if quick else 20_000)
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)

    def library(chosen: Sequence[tuple[str, str]]) -> list[tuple[float, float]]:
        scored = [scorer.score(gold, pred) for pred, gold in chosen]
        return [(one["rouge1"].fmeasure, one["rougeL"].fmeasure) for one in scored]

    def own(chosen: Sequence[tuple[str, str]]) -> list[tuple[float, float]]:
        return [rouge(pred, gold, max_tokens=None) for pred, gold in chosen]

    ours_s, ours = cpu(lambda: own(pairs))
    theirs_s, reference = cpu(lambda: library(pairs))
    by_length = {}
    for name, low, high in (("up to 14 words", 0, 15), ("15 to 30", 15, 31), ("over 30", 31, 10**6)):
        chosen = [pair for pair in pairs if low <= len(pair[1].split()) < high]
        a, _ = cpu(lambda chosen=chosen: own(chosen))
        b, _ = cpu(lambda chosen=chosen: library(chosen))
        by_length[name] = {"pairs": len(chosen), "ours_us": a / len(chosen) * 1e6, "ratio": b / a}
    worst = max(abs(x - y) for a, b in zip(ours, reference, strict=True) for x, y in zip(a, b, strict=True))
    return {"pairs": len(pairs), "largest_difference": worst, "ours_s": ours_s, "library_s": theirs_s,
            "ratio": theirs_s / ours_s, "by_gold_length": by_length}  # fmt: skip


# ---- metrics ----


def bench_metrics() -> dict[str, Any]:
    from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error

    rng, worst = random.Random(2), 0.0
    for task in ("LaMP_1", "LaMP_2", "LaMP_2N"):
        labels = TASKS[task].labels
        for n in (1, 7, 2000):
            golds = [rng.choice(labels[: rng.randint(1, len(labels))]) for _ in range(n)]
            answers = [gold if rng.random() < 0.4 else rng.choice([*labels, "other", ""]) for gold in golds]
            codes = {label: at for at, label in enumerate(labels)}
            y, y_hat = [codes[gold] for gold in golds], [codes.get(answer, -1) for answer in answers]
            f1 = f1_score(y, y_hat, labels=list(range(len(labels))), average="macro", zero_division=0)
            worst = max(worst, abs(accuracy(answers, golds, labels) - accuracy_score(y, y_hat)))
            worst = max(worst, abs(macro_f1(answers, golds, labels) - f1))
    for n in (1, 7, 2000):
        golds = [rng.choice("12345") for _ in range(n)]
        answers = [rng.choice([*"12345", "3.7", "9", "bad"]) for _ in range(n)]
        numbers = [
            float(a) if a != "bad" else (1.0 if abs(1 - int(g)) > abs(5 - int(g)) else 5.0)
            for a, g in zip(answers, golds, strict=True)
        ]
        y = [float(gold) for gold in golds]
        actual = {m.name: m.value for m in official_metrics("LaMP_3", answers, golds, golds, resamples=10)}
        worst = max(worst, abs(actual["MAE"] - mean_absolute_error(y, numbers)))
        worst = max(worst, abs(actual["RMSE"] - mean_squared_error(y, numbers) ** 0.5))
    return {"largest_difference_to_scikit_learn": worst}


# ---- rewards ----


def chains(rng: random.Random, n: int, tokens: int = 200) -> list[str]:
    """Well-formed responses of about `tokens` tokens (words, marks and markup counted) with a LaMP-2 answer."""
    words = Words(rng, 3_000)
    words.pool = [word if word.isascii() and word.isalnum() else "the" for word in words.pool]
    tags = [
        "examine_examples",
        "identify_patterns",
        "infer_preference",
        "compare_options",
        "apply_preference",
        "conclude",
    ]
    per_step = (tokens - 9 - 8 * len(tags)) // len(tags)
    actual = []
    for _ in range(n):
        steps = "\n".join(f"<{tag}>{words.text(per_step).capitalize()}.</{tag}>" for tag in tags)
        actual.append(f"<think>\n{steps}\n</think>\n{rng.choice(TASKS['LaMP_2'].labels)}")
    return actual


def bench_rewards(quick: bool) -> dict[str, Any]:
    responses = chains(random.Random(3), 500 if quick else 20_000)
    rubric = Rubric(default_schema())
    for response in responses[:200]:
        rubric.score(response, task="LaMP_2", gold="comedy")
    n_formed = 0

    def score_all() -> None:
        nonlocal n_formed
        for response in responses:
            n_formed += rubric.score(response, task="LaMP_2", gold="comedy").components["format"] == 1.0

    seconds, _ = cpu(score_all)
    assert n_formed == len(responses)
    n_tokens = [len(re.findall(r"\w+|[^\w\s]", response)) for response in responses[:500]]
    words = [len(response.split()) for response in responses[:500]]
    return {
        "responses": len(responses),
        "tokens_mean": sum(n_tokens) / len(n_tokens),
        "words_mean": sum(words) / len(words),
        "responses_per_second": len(responses) / seconds,
    }


# ---- streaming ----

_CHILD = """
import sys, time
from pathlib import Path
from tagpr_rl.data.lamp import load_lamp, stream_lamp

def peak():  # not ru_maxrss, which a new process inherits from the one that starts it
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024

path, how, before, start = Path(sys.argv[1]), sys.argv[2], peak(), time.process_time()
reader = stream_lamp(path, None, "train", task="LaMP_3")
n = sum(1 for _ in reader) if how == "stream" else len(load_lamp(path, None, "train", task="LaMP_3"))
print(n, peak(), before, time.process_time() - start)
"""


def bench_stream(quick: bool) -> dict[str, Any]:
    """A questions file of 400 MB, read in a process of its own: peak memory and time."""
    rng, size = random.Random(4), (20 if quick else 400) * 10**6
    words = Words(rng, 20_000)
    texts = [words.text(120) for _ in range(2_000)]
    with tempfile.TemporaryDirectory() as folder:
        path, n = Path(folder) / "train_questions.json", 0
        with path.open("w", encoding="utf-8") as handle:
            handle.write("[")
            while handle.tell() < size:
                items = [{"id": f"{n}{i}", "text": rng.choice(texts), "score": "4"} for i in range(30)]
                row = {"id": str(n), "input": TASKS["LaMP_3"].make_input(text=rng.choice(texts)), "profile": items}
                handle.write((", " if n else "") + json.dumps(row))
                n += 1
            handle.write("]")
        actual: dict[str, Any] = {"megabytes": path.stat().st_size / 1e6, "questions": n}
        for how in ("stream", "list"):
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, str(path), how], cwd=ROOT, capture_output=True, text=True, check=True
            )
            count, peak, before, seconds = map(float, done.stdout.split())
            assert count == n
            actual[how] = {"peak_mib": peak, "mib_after_imports": before, "cpu_s": seconds}
    return actual


# ---- real records ----


def bench_real(folder: Path) -> dict[str, Any] | None:
    """The baselines of official records, where some are at hand. NOT comparable with published numbers."""
    if not folder.is_dir():
        return None
    tasks = [task for task in TASKS if (folder / task).is_dir()]
    records = load_folder(folder, tasks, "dev")
    schema, counter = default_schema(), WordTokens().count
    for record in records:
        items = rank(record, 5)
        build_prompt(record, items, style="reasoning", schema=schema, max_tokens=1024, count_tokens=counter)
        build_official_prompt(record, items, max_tokens=512, count_tokens=counter, tokens=WordTokens())
    actual: dict[str, Any] = {"questions": len(records)}
    for name, answers in baselines(records, records).items():
        result = evaluate(records, answers, schema, thoughts=False)
        actual[name] = {f"{m.task} {m.name}": [m.value, m.low, m.high] for m in result.metrics}
    return actual


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--lamp-real", type=Path, help="a folder of official files; default: TAGPR_LAMP_REAL")
    parser.add_argument("--only", nargs="+", choices=("bm25", "rouge", "metrics", "rewards", "stream", "real"))
    arguments = parser.parse_args()
    real = arguments.lamp_real or Path(os.environ.get("TAGPR_LAMP_REAL", ROOT / "../shared/data/lamp_real"))
    parts: dict[str, Callable[[], Any]] = {
        "metrics": bench_metrics,
        "rewards": lambda: bench_rewards(arguments.quick),
        "rouge": lambda: bench_rouge(arguments.quick),
        "bm25": lambda: bench_bm25(arguments.quick),
        "stream": lambda: bench_stream(arguments.quick),
        "real": lambda: bench_real(real),
    }
    facts: dict[str, Any] = {
        "code": code_version(), "python": platform.python_version(), "machine": platform.machine(),
        "quick": arguments.quick, "bars": BARS,
    }  # fmt: skip
    for name, run in parts.items():
        if not arguments.only or name in arguments.only:
            facts[name] = run()
            print(f"{name}: {json.dumps(facts[name], indent=2)}", flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    missed = misses(facts)
    print("\n".join(missed) or "every bar is met")
    return 1 if missed and not arguments.quick else 0


def misses(facts: dict[str, Any]) -> list[str]:
    """The bars that these figures miss."""
    checks = [
        ("bm25", "rankings that differ", lambda f: f["rankings_that_differ"] == 0),
        ("bm25", "ratio below 50", lambda f: f["ratio"] >= BARS["bm25_ratio"]),
        ("rouge", "difference above 1e-12", lambda f: f["largest_difference"] <= BARS["error"]),
        ("rouge", "ratio below 15", lambda f: f["ratio"] >= BARS["rouge_ratio"]),
        ("metrics", "difference above 1e-12", lambda f: f["largest_difference_to_scikit_learn"] <= BARS["error"]),
        ("rewards", "below 20,000 a second", lambda f: f["responses_per_second"] >= BARS["responses_per_second"]),
        ("stream", "over 1 GiB", lambda f: f["stream"]["peak_mib"] <= BARS["stream_mib"]),
    ]
    return [f"missed: {name}: {what}" for name, what, met in checks if name in facts and not met(facts[name])]


if __name__ == "__main__":
    sys.exit(main())
