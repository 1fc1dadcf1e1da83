"""PRMU trained by two processes of Ray is the PRMU of one; a resume may change their number."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from prmu_toy import toy_backbone, toy_pairs

pytest.importorskip("ray")
pytest.importorskip("torch")
os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(600)]

import ray  # noqa: E402

from tagpr_rl.backend.scoring.prmu_train import PrmuJob, run_prmu  # noqa: E402
from tagpr_rl.backend.tracking.settings import TrackingSettings  # noqa: E402
from tagpr_rl.prmu.accuracy import own  # noqa: E402
from tagpr_rl.prmu.serving.score import Scorer  # noqa: E402
from tagpr_rl.prmu.training.preferences import write_pairs  # noqa: E402
from tagpr_rl.run import checkpoints  # noqa: E402

STEPS, SAVED = 8, 6
SETTINGS = {
    "steps": STEPS, "batch_size": 4, "micro_batch_size": 1, "lr": 1e-3, "head_lr": 1e-3, "heads": 2, "warmup": 1,
    "user_dropout": 0.5, "eval_every": 3, "patience": 9, "device": "cpu", "seed": 1,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        num_cpus=4, num_gpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=100 << 20,
        log_to_driver=False,
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PrmuJob]:
    """One process; two that compute blocks again and save; one that goes on from what the two saved."""
    root = tmp_path_factory.mktemp("prmu")
    write_pairs(root / "pairs.parquet", toy_pairs(users=14))
    tracking = TrackingSettings(str(root / "metrics.jsonl"), "disabled", str(root), "toy", "toy", "prmu")
    whole = PrmuJob(
        pairs=str(root / "pairs.parquet"), backbone=str(toy_backbone(root / "toy")), out=str(root / "one"),
        settings=SETTINGS, tracking=asdict(tracking), threads=1,
    )  # fmt: skip
    two = replace(
        whole, out=str(root / "two"), settings={**SETTINGS, "recompute": True}, checkpoints=str(root / "steps"),
        every=SAVED,
    )  # fmt: skip
    jobs = {
        "one": whole, "two": two, "resumed": replace(two, out=str(root / "resumed"), settings=SETTINGS),
    }  # fmt: skip
    (root / "steps").mkdir()
    checkpoints.begin(root / "steps", {}, keep=1)
    run_prmu(1, jobs["one"])
    run_prmu(2, jobs["two"])
    shutil.copytree(root / "two", root / "resumed")
    run_prmu(1, jobs["resumed"])
    return jobs


def rows(job: PrmuJob) -> list[dict[str, float]]:
    lines = (Path(job.out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("name", ["two", "resumed"])
def test_the_number_of_processes_changes_neither_losses_nor_ranking(name: str, jobs: dict[str, PrmuJob]) -> None:
    reference, other = rows(jobs["one"]), rows(jobs[name])
    assert [row["step"] for row in other] == list(range(1, STEPS + 1))
    for mine, expected in zip(other, reference, strict=True):
        assert mine == pytest.approx(expected, abs=1e-5)
    requests = [request for pair in toy_pairs(users=14) for request in own(pair)]
    scores = {key: Scorer(Path(jobs[key].out)).raw(requests) for key in ("one", name)}
    assert scores[name] == pytest.approx(scores["one"], abs=1e-4)
    order = {key: sorted(range(len(values)), key=lambda i: round(values[i], 3)) for key, values in scores.items()}
    assert order[name] == order["one"]


def test_figures_of_all_processes_are_one_process_s(jobs: dict[str, PrmuJob]) -> None:
    """Each process scores half of the held-out responses; statistics and accuracies are those of all."""
    one, two = (
        json.loads((Path(jobs[name].out) / "metrics.json").read_text(encoding="utf-8")) for name in ("one", "two")
    )
    assert {key: two[key] for key in one if key != "train_seconds"} == pytest.approx(
        {key: value for key, value in one.items() if key != "train_seconds"}, abs=1e-5
    )
    assert one["unseen/pairs"] > 0 and one["score_std"] > 1e-3
