"""Rendered scripts on a real Slurm: cancelled, submitted again, requeued before the time limit; on two nodes."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def bench(root: Path) -> ModuleType:
    sys.path.insert(0, str(root / "bench"))
    try:
        module = importlib.import_module("slurm")
    finally:
        sys.path.pop(0)
    reason = module.missing()
    if reason:
        pytest.skip(reason)
    return module


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="slurm") as name:  # short: Ray makes sockets below it
        yield Path(name)


@pytest.fixture(scope="module")
def slurm(bench: ModuleType, folder: Path) -> Iterator[Any]:
    with bench.Namespaces(folder, 2) as net, bench.Slurm(folder / "slurm", net) as cluster:
        yield cluster


def test_slurm_takes_the_options_of_a_gpu_script(bench: ModuleType, slurm: Any, folder: Path) -> None:
    checkout = bench.copy_checkout(folder / "gpu", bench.recipe_text(2, 30, trained=True))
    size = ("platform.device=cuda", "platform.devices_per_node=2", "cluster.cpus=8", "cluster.slurm.partition=all")
    requested = (*size, "cluster.slurm.account=lab", f"cluster.node_type={bench.FEATURE}", "cluster.env=[HF_TOKEN]")
    bench.render(slurm, checkout, *requested, "cluster.accelerator=H200")
    slurm.run("sbatch", "--test-only", "slurm.sbatch", cwd=checkout)
    for wrong in ("cluster.accelerator=B200", "cluster.node_type=other", "cluster.slurm.partition=none"):
        bench.render(slurm, checkout, *requested, wrong)
        with pytest.raises(RuntimeError, match=r"(?i)invalid|not available"):
            slurm.run("sbatch", "--test-only", "slurm.sbatch", cwd=checkout)


def test_a_cancelled_job_goes_on_when_submitted_again_and_when_requeued(
    bench: ModuleType, slurm: Any, folder: Path
) -> None:
    checkout = bench.copy_checkout(folder / "one", bench.recipe_text(1, 100, trained=False))
    result = bench.interrupted_job(slurm, checkout)
    assert result["first"] == "CANCELLED" and result["done_before"][0] == "010_data"
    assert "040_chains" not in result["done_before"], "it was cancelled too late to show anything"
    assert (result["second"], result["exit_code"], result["restarts"]) == ("COMPLETED", "0:0", 1), result["log"]
    assert result["done"] == ["010_data", "020_model", "030_prompts", "040_chains"]
    before, again, after = result["log"].partition("time limit near: queueing again")
    assert again, result["log"]
    assert "start 1 on" in before and "data      done before" in before
    assert "start 2 on" in after and "model     done before" in after


def test_a_job_on_two_nodes_trains_on_a_ray_cluster_of_its_own(bench: ModuleType, slurm: Any, folder: Path) -> None:
    checkout = bench.copy_checkout(folder / "two", bench.recipe_text(2, 30, trained=True))
    result = bench.several_nodes(slurm, checkout)
    # Each node has one device and SFT two processes of one device each: one ran on each node.
    assert (result["state"], result["exit_code"]) == ("COMPLETED", "0:0"), result["log"]
    assert result["done"][-1] == "050_base"
