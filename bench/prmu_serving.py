"""PRMU's serving against the same model's raw batched forward, several scorers against one, and what a GRPO step waits
for scores: three bars.

Run: python bench/prmu_serving.py [--run runs/demo] [--responses 256] [--rounds 5] [--size 384,6] [--scorers 2]
     [--out FILE]

`--run` is a run whose guided stage has made rollouts; without it recipes/smoke.yaml is run first. The responses, the
profiles and PRMU are that run's own. Raw: `PrmuModel.scores` on padded tensors that lie ready on the device, profile
states included, rows sorted by length, at the best of several batch sizes. Served: the same responses as text through
`ScorerPool` and one Ray actor, profile states in its cache, no response seen before. Raw and served take turns in
every round, with the same number of threads; the ratio is the median of the rounds' ratios. The wait is
`timing_s/prmu_wait` over `timing_s/step` of the guided stage's own metrics, its first step left out. `--scorers N`
measures N scorers and one in turns, each process with `--threads` threads, in place of raw and served.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow.parquet as pq
import ray
import torch
from transformers import AutoModel

from tagpr_rl.backend.scoring import prmu_actor
from tagpr_rl.backend.scoring.prmu_client import ScorerPool
from tagpr_rl.files import write_json
from tagpr_rl.prmu.inputs import collate, collate_responses
from tagpr_rl.prmu.model import PrmuModel, gather_items
from tagpr_rl.prmu.serving.requests import ScoreRequest
from tagpr_rl.prmu.serving.score import Scorer
from tagpr_rl.prmu.users.vectors import UserTable

ROOT = Path(__file__).resolve().parents[1]
BATCHES = (4, 8, 16, 32, 64, 128)
THROUGHPUT_BAR, WAIT_BAR = 0.9, 0.02
SCALING_BAR = 0.9
"""Of the number of scorers: two serve 1.8 times one."""


def stage_folder(run: Path, name: str) -> Path:
    """The folder of the run's stage `name`."""
    (actual,) = (path for path in run.iterdir() if path.name.split("_", 1)[-1] == name and path.is_dir())
    return actual


def made_run(out: Path) -> Path:
    """A new run of recipes/smoke.yaml up to its guided stage."""
    command = [sys.executable, "launch.py", "run", "recipes/smoke.yaml", f"out={out}", "--until", "guided"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    return out / "smoke"


def requests_of(run: Path, count: int) -> list[ScoreRequest]:
    """`count` of the guided stage's responses with their users' profiles, repeated where there are fewer."""
    infos = pq.read_table(stage_folder(run, "prompts") / "train.parquet", columns=["extra_info"])["extra_info"]
    by_record = {(info["task"], info["record_id"]): info for info in infos.to_pylist()}
    files = sorted((stage_folder(run, "guided") / "rollouts").glob("step_*.jsonl"), reverse=True)
    actual: list[ScoreRequest] = []
    for file in files:
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            info = by_record[(line["task"], line["record_id"])]
            profile = tuple(info["profile_texts"])
            actual.append(ScoreRequest(info["user_id"], profile, info["question"], line["response"]))
        if len(actual) >= count:
            break
    return [actual[i % len(actual)] for i in range(count)]


def larger(source: Path, folder: Path, hidden: int, layers: int) -> Path:
    """A random PRMU of another size with the tokenizer and the limits of `source`; its scores mean nothing."""
    small, encoder = PrmuModel.from_pretrained(source)
    shape = copy.deepcopy(small.backbone.config)
    shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers = hidden, 3 * hidden, layers
    shape.head_dim, shape.layer_types = hidden // shape.num_attention_heads, ["full_attention"] * layers
    model = PrmuModel(AutoModel.from_config(shape), replace(small.config), UserTable())
    folder.mkdir()
    model.save_pretrained(folder, encoder.tokenizer)
    return folder


def new_in(requests: Sequence[ScoreRequest], number: int) -> list[ScoreRequest]:
    """The same responses with a word that no cache has met."""
    return [
        replace(request, response=f"{request.response} {number * 100_000 + i}") for i, request in enumerate(requests)
    ]


class Raw:
    """The model's own forward on tensors that lie ready."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    @torch.inference_mode()
    def ready(self, requests: Sequence[ScoreRequest], batch: int) -> list[tuple[torch.Tensor, ...]]:
        """Arguments of `PrmuModel.scores` for each batch of `batch` requests, sorted by length."""
        scorer, actual = self.scorer, []
        order = sorted(requests, key=scorer.length)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            users = list(range(len(part)))
            made = collate(scorer.encoder, part, users, scorer.model.table.rows([r.user_id for r in part]))
            made = made.to(scorer.device)
            states = scorer.model.item_states(made.item_ids, made.item_mask)
            items, item_mask = gather_items(states, made.item_mask, made.profile)
            # only as wide as the longest profile, as the scorer packs it
            keep = item_mask.long().sort(dim=1, descending=True, stable=True).indices[:, : int(item_mask.sum(1).max())]
            items = items.gather(1, keep[..., None].expand(-1, -1, items.shape[2]))
            rows = collate_responses([scorer.encoder.response(r.question, r.response) for r in part])
            ids, text_mask, first = (x.to(scorer.device) for x in rows)
            actual.append((ids, text_mask, first, items, item_mask.gather(1, keep), made.known))
        return actual

    @torch.inference_mode()
    def seconds(self, batches: Sequence[tuple[torch.Tensor, ...]]) -> float:
        """Seconds of one pass over the batches, the scores read back."""
        started = time.perf_counter()
        for arguments in batches:
            self.scorer.model.scores(*arguments)[0].cpu()
        return time.perf_counter() - started


def served_seconds(pool: ScorerPool, requests: Sequence[ScoreRequest]) -> float:
    """Seconds until every response is scored, all asked at once."""

    async def run() -> float:
        started = time.perf_counter()
        replies = await asyncio.gather(*[pool.score(request) for request in requests])
        seconds = time.perf_counter() - started
        bad = next((reply.reason for reply in replies if reply.score is None), None)
        if bad:
            raise SystemExit(f"a response was not scored: {bad}")
        return seconds

    return asyncio.run(run())


def throughput(requests: Sequence[ScoreRequest], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Raw at its best batch and served, in turns."""
    torch.set_num_threads(options.threads)
    scorer = Scorer(folder, options.device, max_padded_tokens=options.batch_tokens)
    raw = Raw(scorer)
    name = f"bench_{os.getpid()}"
    limits = {"threads": options.threads, "max_batch_tokens": options.batch_tokens}
    actors = prmu_actor.start_all(
        name, 1, path=str(folder.resolve()), device=options.device, num_gpus=float(options.device != "cpu"), **limits
    )
    pool = ScorerPool(list(actors), 600.0)
    served_seconds(pool, new_in(requests, 0))  # imports, allocations, profile states
    sweep = {}
    for batch in BATCHES:
        ready = raw.ready(new_in(requests, 0), batch)
        raw.seconds(ready)
        sweep[batch] = len(requests) / min(raw.seconds(ready) for _ in range(2))
    best = max(sweep, key=lambda batch: sweep[batch])
    rows = []
    for number in range(1, options.rounds + 1):
        requested = new_in(requests, number)
        ready = raw.ready(requested, best)
        times = raw.seconds(ready), served_seconds(pool, requested)
        rows.append(
            {"raw": len(requested) / times[0], "served": len(requested) / times[1], "ratio": times[0] / times[1]}
        )
    health = ray.get(next(iter(actors.values())).health.remote())
    for actor in actors.values():
        ray.kill(actor)
    ratio = statistics.median(row["ratio"] for row in rows)
    return {
        "responses": len(requests),
        "tokens_per_response": statistics.mean(scorer.length(request) for request in requests),
        "threads": options.threads,
        "raw_responses_per_s_by_batch": sweep,
        "best_batch": best,
        "rounds": rows,
        "served_batch": health["requests"] / health["batches"],
        "ratio": ratio,
        "bar": THROUGHPUT_BAR,
        "met": ratio >= THROUGHPUT_BAR,
    }


def scaling(requests: Sequence[ScoreRequest], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Responses a second of one scorer and of several, in turns; all of them live all the time."""
    limits = {"threads": options.threads, "max_batch_tokens": options.batch_tokens}
    own = {"device": options.device, "num_gpus": float(options.device != "cpu"), **limits}
    actors, pools = {}, {}
    for count in (1, options.scorers):
        started = prmu_actor.start_all(f"bench_{os.getpid()}_{count}", count, path=str(folder.resolve()), **own)
        actors |= started
        pools[count] = ScorerPool(list(started), 600.0)
        for number in range(2):
            served_seconds(pools[count], new_in(requests, number))  # imports, allocations, profile states
    rows = []
    for number in range(2, options.rounds + 2):
        requested = new_in(requests, number)
        order = list(pools) if number % 2 else list(pools)[::-1]
        seconds = {count: served_seconds(pools[count], requested) for count in order}
        rows.append({"one": len(requests) / seconds[1], "several": len(requests) / seconds[options.scorers]})
    for actor in actors.values():
        ray.kill(actor)
    ratio = statistics.median(row["several"] / row["one"] for row in rows)
    bar = SCALING_BAR * options.scorers
    return {"scorers": options.scorers, "rounds": rows, "ratio": ratio, "bar": bar, "met": ratio >= bar}


def wait(run: Path) -> dict[str, Any]:
    """The guided stage's wait for scores as a share of its steps, the first left out."""
    text = (stage_folder(run, "guided") / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()][1:]
    shares = [row["timing_s/prmu_wait"] / row["timing_s/step"] for row in rows]
    total = sum(row["timing_s/prmu_wait"] for row in rows) / sum(row["timing_s/step"] for row in rows)
    return {
        "steps": len(rows),
        "median_wait_s": statistics.median(row["timing_s/prmu_wait"] for row in rows),
        "median_step_s": statistics.median(row["timing_s/step"] for row in rows),
        "median_share": statistics.median(shares),
        "largest_share": max(shares),
        "share": total,
        "bar": WAIT_BAR,
        "met": total <= WAIT_BAR,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--run", type=Path, help="a run directory with a guided stage")
    parser.add_argument("--responses", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--size", help="hidden,layers of a random PRMU to serve instead of the run's: its work counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scorers", type=int, default=1, help="above 1: measure so many against one")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        run = options.run or made_run(Path(temp))
        requests = requests_of(run, options.responses)
        waited = wait(run)
        memory = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 200 << 20, "log_to_driver": False}
        ray.init(_node_ip_address="127.0.0.1", **memory)
        try:
            folder = stage_folder(run, "prmu") / "prmu"
            if options.size:
                folder = larger(folder, Path(temp) / "prmu", *map(int, options.size.split(",")))
            measured = {"scaling": scaling(requests, folder, options)} if options.scorers > 1 else {}
            measured = measured or {"throughput": throughput(requests, folder, options)}
        finally:
            ray.shutdown()
    actual = {"device": options.device, **measured, "wait": waited}
    print(json.dumps(actual, indent=2))
    if options.out:
        write_json(options.out, actual)


if __name__ == "__main__":
    main()
