"""The live view beside a run that grows: time to open 5,000 traces, to show a new step, and CPU of the viewer.

`python bench/watch.py --out watch.json`. The run is made up, no training: rollouts of report.py for the size, then
steps of canned responses to questions of the embedded world, one every `--step-s` seconds. One browser is open. A
machine without Chromium gets the seconds to the page and the traces over HTTP.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import chromium  # noqa: E402
import report as made  # noqa: E402

from tagpr_rl.chains.teachers.canned import canned_replies, stand_in_prmu  # noqa: E402
from tagpr_rl.config import Recipe, dump_recipe, load_recipe  # noqa: E402
from tagpr_rl.files import write_json, write_text  # noqa: E402
from tagpr_rl.prompts.dataset import Dataset  # noqa: E402
from tagpr_rl.prompts.tokens import WordTokens  # noqa: E402
from tagpr_rl.report.page.names import LEARNING, RESPONSES, TIMING  # noqa: E402
from tagpr_rl.reward.components import COMPONENTS  # noqa: E402
from tagpr_rl.reward.rubric import Rubric  # noqa: E402
from tagpr_rl.run import metrics  # noqa: E402
from tagpr_rl.run.layout import RunDir, stage_dir  # noqa: E402
from tagpr_rl.tags.schema import schema_from  # noqa: E402

MAX_OPEN_S, MAX_FOLLOW_S, MAX_SHARE = 2.0, 5.0, 0.01
STAGE = "explore"
TICK = os.sysconf("SC_CLK_TCK")


class World:
    """Questions of the recipe's embedded world, with canned responses of every kind."""

    def __init__(self, recipe: Recipe, users: int = 30) -> None:
        small = recipe.data.world.model_copy(update={"train_users": users, "held_out_users": 1, "time_users": 0})
        self.recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"world": small})})
        self.schema = schema_from(recipe.schema_file)
        dataset = Dataset(self.recipe, self.schema, None)
        self.records = list(dataset.train)
        self.prompt = dataset.prompt_maker("reasoning", WordTokens())
        self.rubric = Rubric(self.schema)

    def lines(self, step: int, prompts: int, group: int) -> Iterator[dict[str, Any]]:
        """Rollout lines of one step; every fourth group teaches nothing, and a response of every fifth is masked."""
        rng = random.Random(step)
        for place, record in enumerate(rng.sample(self.records, prompts)):
            prompt = self.prompt(record)
            replies = canned_replies(record, prompt, self.schema, scripted=True)
            texts = [replies[0 if place % 4 == 3 else i % len(replies)].text for i in range(group)]
            scored = []
            for text in texts:
                prmu = stand_in_prmu(text, record)
                kind = {"task": record.task, "gold": record.gold or "", "prmu": prmu, "prmu_status": "scored"}
                scored.append(self.rubric.score(text, **kind).row())  # type: ignore[arg-type]
            mean = sum(float(row["total"]) for row in scored) / group
            for sample, (text, row) in enumerate(zip(texts, scored, strict=True)):
                masked = place % 5 == 4 and sample == 0
                yield {
                    "step": step, "record_id": record.id, "task": record.task, "user_id": record.user_id,
                    "group": f"{step}-{place}", "sample": sample, "prompt": prompt.messages[0]["content"],
                    "response": text, "gold": record.gold, "advantage": float(row["total"]) - mean,
                    **{f"reward_{key}": row[key] for key in ("total", *COMPONENTS) if key in row},
                    "parse_status": row["parse_status"], "prmu_status": "scored", "prmu_reason": "",
                    **({"masked": True, "why": "not scored"} if masked else {}),
                    **({"staleness": 1} if place % 7 == 6 else {}),
                }  # fmt: skip


def metrics_row(step: int, seconds: float, schema_tags: tuple[str, ...]) -> dict[str, Any]:
    """As many numbers as a GRPO stage logs, all of them moving."""
    keys = [name.key for name in (*LEARNING, *RESPONSES, *TIMING)]
    keys += [f"reward/{name}/{what}" for name in ("total", *COMPONENTS) for what in ("mean", "std", "zero_variance")]
    keys += [f"tag/{tag}/{what}" for tag in schema_tags for what in ("use", "valid", "words")]
    keys += [f"phase/{name}_share" for name in ("generation", "update_actor", "weight_sync", "old_log_prob")]
    rng = random.Random(step)
    return {"step": step, "time_s": seconds, **{key: rng.random() for key in keys}, "timing_s/step": 4.0}


def add_step(run: RunDir, world: World, step: int, prompts: int, group: int, seconds: float) -> None:
    """What a trainer writes at the end of a step, in its order."""
    folder = stage_dir(world.recipe, run, STAGE)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in world.lines(step, prompts, group))
    write_text(folder.rollouts / f"step_{step:04d}.jsonl", text)
    metrics.append(folder.metrics, metrics_row(step, seconds, world.schema.names))


@contextmanager
def viewer(run: RunDir, port: int = 0) -> Iterator[tuple[str, int]]:
    """(URL, process id) of `tagpr watch` on the run."""
    command = [sys.executable, "-m", "tagpr_rl", "watch", str(run.root), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0], process.pid
        finally:
            process.terminate()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def over_http(url: str) -> dict[str, Any]:
    """Seconds to the page and to the traces, without a browser."""
    begun = time.perf_counter()
    with urllib.request.urlopen(url) as reply:
        page = len(reply.read())
    with urllib.request.urlopen(f"{url}traces") as reply:
        traces = len(reply.read())
    return {"http_s": time.perf_counter() - begun, "page_bytes": page, "traces_bytes": traces}


def in_browser(
    launch: Any, run: RunDir, world: World, url: str, pid: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Open the page, add steps, and see when each shows."""
    opened = []
    browser = None
    for _ in range(arguments.times):
        if browser is not None:
            browser.close()
        browser = launch()
        tab = chromium.open_tab(browser, url)
        begun = time.monotonic()
        tab.page.wait_for_selector("#viewer [role=status]", state="attached")
        tab.page.evaluate(chromium.DRAWN)
        opened.append(tab.open_s + time.monotonic() - begun)
    page = tab.page
    last = metrics.last(stage_dir(world.recipe, run, STAGE).metrics)
    first = (last or {"step": 0})["step"] + 1
    follows, begun, before = [], time.monotonic(), cpu_s(pid)
    for step in range(first, first + arguments.steps):
        add_step(run, world, step, 16, 8, 4.0 * step)
        written = time.monotonic()
        page.wait_for_selector(f".v-list li:has-text('step {step}')", timeout=60_000)
        follows.append(time.monotonic() - written)
        time.sleep(max(0.0, arguments.step_s - (time.monotonic() - written)))
    used, elapsed = cpu_s(pid) - before, time.monotonic() - begun
    return {
        "open_s": sorted(opened)[len(opened) // 2], "open_s_all": [round(s, 3) for s in opened],
        "follow_s_max": max(follows), "follow_s_mean": sum(follows) / len(follows),
        "cpu_s_a_step": used / arguments.steps, "step_s": elapsed / arguments.steps, "cpu_share": used / elapsed,
        "console_errors": tab.errors,
    }  # fmt: skip


def bars(figures: Mapping[str, Any]) -> list[str]:
    """The bars that were missed."""
    limits = {"open_s": MAX_OPEN_S, "follow_s_max": MAX_FOLLOW_S, "cpu_share": MAX_SHARE}
    return [f"{key} {figures[key]:.3f} > {most}" for key, most in limits.items() if figures.get(key, 0.0) > most]


def main() -> int:
    """Make, serve, open, grow; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=5000)
    parser.add_argument("--words", type=int, default=160, help="of a made-up thought")
    parser.add_argument("--steps", type=int, default=8, help="that the run makes while it is watched")
    parser.add_argument("--step-s", type=float, default=10.0)
    parser.add_argument("--times", type=int, default=3, help="that the page is opened")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    recipe = load_recipe(ROOT / "recipes" / "demo.yaml")
    with tempfile.TemporaryDirectory() as folder:
        run, world = made.make_run(Path(folder), recipe, arguments.traces, arguments.words), World(recipe)
        write_json(run.resolved, dump_recipe(recipe))
        begun = time.perf_counter()
        with viewer(run) as (url, pid):
            figures = {"traces": arguments.traces, "start_s": time.perf_counter() - begun, **over_http(url)}
            path = chromium.find()
            if path is not None:
                with chromium.driver(path) as launch:
                    figures |= in_browser(launch, run, world, url, pid, arguments)
    print(json.dumps(figures, indent=2))
    if arguments.out:
        write_json(arguments.out, figures)
    missed = bars(figures)
    print(*missed, sep="\n")
    return int(bool(missed or figures.get("console_errors")))


if __name__ == "__main__":
    sys.exit(main())
