"""The report of a run with 5,000 traces: size, build time, time to open in Chromium, console errors.

`python bench/report.py --out report.json`. The run is made up: no training, texts of the length of a 1.7B model's
answers to LaMP. If the words are too many, the report itself cuts them to whole groups, and the figures show that.
A machine without Chromium gets the size and the build time.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import chromium  # noqa: E402

from tagpr_rl.config import Recipe, load_recipe  # noqa: E402
from tagpr_rl.files import write_json  # noqa: E402
from tagpr_rl.report import build_report  # noqa: E402
from tagpr_rl.run.layout import RunDir, stage_dir  # noqa: E402
from tagpr_rl.tags.schema import default_schema  # noqa: E402

MAX_BYTES, MAX_OPEN_S = 10_000_000, 3.0
GROUP, STEPS = 8, 25
WORDS = Path(__file__).read_text(encoding="utf-8").split()


def text(rng: random.Random, words: int) -> str:
    """So many words, half of them made up, so that no two texts are alike."""
    return " ".join(rng.choice(WORDS) if rng.random() < 0.5 else f"w{rng.randrange(9999)}" for _ in range(words))


def response(rng: random.Random, words: int) -> str:
    """A well-formed response, one in ten cut off."""
    tags = [tag.name for tag in default_schema().tags if tag.min_count or rng.random() < 0.4]
    steps = "".join(f"<{tag}>{clean(text(rng, words // len(tags)))}</{tag}>" for tag in tags)
    whole = f"<think>{steps}</think>{clean(text(rng, 6))}"
    return whole[: len(whole) // 2] if rng.random() < 0.1 else whole


def clean(words: str) -> str:
    return words.replace("<", "(").replace(">", ")")


def rows(rng: random.Random, step: int, responses: int, words: int) -> Iterator[dict[str, Any]]:
    """Rollout lines of one step."""
    for group in range(responses // GROUP):
        record = f"{step}-{group}"
        prompt = "Answer as this one user would. The user's history, most relevant first:\n"
        prompt += "\n".join(text(rng, 30) for _ in range(8)) + f"\nThe question:\n{text(rng, 60)}"
        for sample in range(GROUP):
            parts = {"task": float(rng.random() < 0.5), "format": 1.0, "tag": rng.random(), "prmu": rng.random()}
            total = parts["task"] + 0.1 * parts["tag"] + 0.1 * parts["prmu"]
            yield {
                "step": step, "record_id": record, "task": f"LaMP_{group % 4 + 1}", "user_id": f"u{group % 50}",
                "sample": sample, "prompt": prompt, "response": response(rng, words), "gold": text(rng, 6),
                "advantage": rng.gauss(0, 1), "reward_total": total, "reward_repetition": 0.0,
                **{f"reward_{key}": value for key, value in parts.items()}, "parse_status": "OK",
                "prmu_status": "scored", "prmu_reason": "", "group": record,
            }  # fmt: skip


def make_run(root: Path, recipe: Recipe, traces: int, words: int) -> RunDir:
    """A run's folder with `traces` responses, four fifths of them rollouts."""
    run, rng = RunDir(root / recipe.name), random.Random(0)
    per_step = max(GROUP, traces * 4 // 5 // (2 * STEPS) // GROUP * GROUP)
    for name in ("guided", "explore"):
        folder = stage_dir(recipe, run, name)
        folder.rollouts.mkdir(parents=True)
        with folder.metrics.open("w", encoding="utf-8") as metrics:
            for step in range(1, STEPS + 1):
                made = list(rows(rng, step, per_step, words))
                lines = "".join(json.dumps(row) + "\n" for row in made)
                (folder.rollouts / f"step_{step:04d}.jsonl").write_text(lines, encoding="utf-8")
                mean = statistics.fmean(row["reward_total"] for row in made)
                metrics.write(json.dumps({"step": step, "reward/total/mean": mean, "reward/tag/mean": 0.5}) + "\n")
    models = ("base", "sft", "guided", "explore")
    questions = list(rows(rng, 0, traces // 5 // len(models) * GROUP, words))[::GROUP]
    folder = stage_dir(recipe, run, "eval").root
    for model in models:
        (folder / "responses").mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({**row, "response": response(rng, words), "score": rng.random()}) for row in questions]
        (folder / "responses" / f"{model}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "eval.json", {"models": {}})
    return run


def measure(launch: Callable[[], Any], page: Path, times: int) -> dict[str, Any]:
    """Seconds to open in Chromium (median of `times`), console errors, and the width of the page on a phone.

    `launch` starts a browser (chromium.driver): a new process each time, so that nothing is cached.
    """
    tabs = [chromium.open_tab(launch(), page) for _ in range(times)]
    phone = chromium.open_tab(launch(), page, width=375, height=800)
    return {
        "open_s": statistics.median(tab.open_s for tab in tabs),
        "open_s_all": [round(tab.open_s, 3) for tab in tabs],
        "console_errors": [error for tab in tabs for error in tab.errors],
        "viewer": tabs[-1].page.text_content("#viewer [role=status]"),
        "width_at_375": phone.page.evaluate("document.documentElement.scrollWidth"),
    }


def main() -> int:
    """Make, build, open; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=5000)
    parser.add_argument("--words", type=int, default=160, help="of a response's thought")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    recipe = load_recipe(ROOT / "recipes" / "demo.yaml")
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), recipe, arguments.traces, arguments.words)
        begun = time.perf_counter()
        page = build_report(run, recipe)
        figures = {"traces": arguments.traces, "words": arguments.words, "build_s": time.perf_counter() - begun}
        figures |= {"bytes": page.stat().st_size}
        path = chromium.find()
        if path is not None:
            with chromium.driver(path) as launch:
                figures |= measure(launch, page, arguments.times)
    print(json.dumps(figures, indent=2))
    if arguments.out:
        write_json(arguments.out, figures)
    slow = figures.get("open_s", 0.0) > MAX_OPEN_S
    return int(figures["bytes"] > MAX_BYTES or slow or bool(figures.get("console_errors")))


if __name__ == "__main__":
    sys.exit(main())
