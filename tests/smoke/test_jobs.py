"""Ray's Jobs API on a real cluster of two nodes, each in a network namespace: submit, output, status, stop, faults."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
CPUS = 15
"""What the rendered manifests announce for one device per node: 3 per device, 12 per run."""


@dataclass(frozen=True)
class Cluster:
    """Where to submit to and from."""

    address: str
    checkout: Path
    folder: Path
    environment: dict[str, str]
    head: tuple[str, ...]
    """What precedes a command that runs on the head's machine."""

    def launch(self, *arguments: str, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "launch.py", *arguments]
        return subprocess.run(
            command, cwd=self.checkout, env=self.environment | environment, timeout=seconds,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def on_head(self, *arguments: str, seconds: float = 400) -> subprocess.CompletedProcess[str]:
        """Run launch.py in the checkout on the head's machine."""
        command = [*self.head, sys.executable, "launch.py", *arguments]
        # As in a job. Without it, Ray takes the cluster that was started last on the host of these namespaces.
        own = self.environment | {"RAY_ADDRESS": self.address.removeprefix("http://").replace(":8265", ":6379")}
        return subprocess.run(
            command, cwd=self.checkout, env=own, timeout=seconds, capture_output=True, text=True, check=False
        )

    def submit(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        place = (f"name={name}", f"cluster.storage={self.folder / 'runs'}", "--address", self.address)
        return self.launch("submit", "recipes/job.yaml", *place, *arguments, **environment)

    def jobs(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.launch("jobs", *arguments, "--address", self.address, **environment)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        import machines
    finally:
        sys.path.pop(0)
    reason = machines.why_no_namespaces()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="ray") as name:  # short: Ray makes sockets below it
        folder = Path(name)
        checkout = machines.copy_checkout(folder, machines.recipe_text(2, 30, trained=True))
        with machines.Namespaces(folder, 2) as net, machines.RayNodes(folder, net, CPUS) as nodes:
            head = tuple(net.command(net.names[0], own=folder / "ray"))
            yield Cluster(nodes.address, checkout, folder, nodes.environment, head)


def test_a_submitted_run_trains_on_both_nodes_and_its_output_is_followed(cluster: Cluster) -> None:
    done = cluster.submit("both")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    job, *output = done.stdout.splitlines()
    assert job.startswith("raysubmit_")
    # Each node has one device and SFT two processes of one device each: one ran on each node.
    assert any(re.match(r"base +\d", line) for line in output), done.stdout
    assert "SUCCEEDED" in done.stderr
    assert (cluster.folder / "runs" / "both" / "050_base" / "manifest.json").is_file()
    status = cluster.jobs("status", job).stdout
    assert "status   SUCCEEDED" in status and f"run      {cluster.folder}/runs/both" in status
    assert cluster.jobs("logs", job).stdout.splitlines() == output
    assert not (cluster.checkout / "runs").exists()


def test_a_cluster_that_is_too_small_says_what_it_lacks(cluster: Cluster) -> None:
    # Ten seconds: the second node may still be starting where this test runs alone.
    sizes = ("platform.nodes=3", "platform.devices_per_node=2", "cluster.wait_s=10", "stages.base.batch_size=6")
    done = cluster.submit("large", *sizes)
    assert done.returncode == 1
    # 3 nodes x 2 devices x 3 CPUs + 12 = 30 CPUs, which 2 nodes with 15 each have.
    for part in ("nodes: 3 asked, 2 alive", "2 asked, 1 there", "devices in all: 6 asked, 2 there"):
        assert part in done.stdout, done.stdout
    error = done.stdout[done.stdout.index("error: ") :]
    assert "CPUs in all" not in error and "Traceback" not in error
    assert not (cluster.folder / "runs" / "large" / "010_data" / "manifest.json").exists(), "it says so at once"


def test_a_job_is_seen_and_stopped_and_its_run_has_one_writer(cluster: Cluster) -> None:
    long = ("data.world.train_users=5000", "--no-follow")
    first = cluster.submit("long", *long)
    assert first.returncode == 0, first.stderr
    job = first.stdout.strip()
    again = cluster.submit("long", *long)
    assert again.returncode == 2 and f"job {job} is" in again.stderr and "jobs stop" in again.stderr
    assert "command  python launch.py run recipes/job.yaml name=long" in cluster.jobs("status", job).stdout
    stopped = cluster.jobs("stop", job)
    assert stopped.returncode == 0 and "status   STOPPED" in stopped.stdout, stopped.stdout + stopped.stderr
    assert cluster.jobs("logs", job, "--follow").returncode == 1


def test_values_of_the_environment_go_with_the_job_only_where_asked(cluster: Cluster) -> None:
    names = "cluster.env=[TAGPR_TEST_VALUE]"
    absent = cluster.submit("env", names, "--no-follow", "--pass-env")
    assert absent.returncode == 2 and "not set in this shell: TAGPR_TEST_VALUE" in absent.stderr
    job = cluster.submit("env", names, "--no-follow", TAGPR_TEST_VALUE="s3cret")
    assert "nodes must have TAGPR_TEST_VALUE" in job.stderr
    cluster.jobs("stop", job.stdout.strip())
    assert "s3cret" not in job.stdout + job.stderr + cluster.jobs("status", job.stdout.strip()).stdout


def test_wrong_addresses_tokens_and_jobs_give_one_message(cluster: Cluster) -> None:
    unknown = cluster.jobs("status", "raysubmit_none")
    assert unknown.returncode == 2 and "knows no such job" in unknown.stderr
    token = cluster.jobs("status", "raysubmit_none", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert token.returncode == 2 and "RAY_AUTH_TOKEN" in token.stderr and "Traceback" not in token.stderr
    outside = cluster.launch("run", "recipes/job.yaml", f"platform.ray_address={cluster.address[7:-5]}:6379")
    assert outside.returncode == 2 and "tagpr cluster submit" in outside.stderr, outside.stderr


STAGES = {
    "data": {"kind": "data"},
    "model": {"kind": "model"},
    "prompts": {"kind": "prompts"},
    "chains": {"kind": "chains"},
    "sft": {"kind": "sft", "init": "model", "steps": 20, "batch_size": 8, "warmup_steps": 2},
    "prmu": {"kind": "prmu", "init": "sft", "steps": 5, "batch_size": 4},
    "guided": {
        "kind": "grpo", "init": "sft", "prmu": "prmu", "steps": 6, "prompts_per_step": 4, "group_size": 4,
        "micro_batch_size": 16, "save_every": 1,
    },
}  # fmt: skip
SEPARATE = {
    "name": "separate",
    "data": {"prompt": {"max_tokens": 512, "max_response_tokens": 96}, "world": {"train_users": 30}},
    "platform": {"threads": 1},
    "placement": {"rollout": "separate"},
    "cluster": {"memory_gb": 2, "time_limit_h": 1},
    "log": {"wandb": "offline"},
    "stages": STAGES,
}


def test_the_policy_on_one_node_and_the_rollout_on_the_other_go_on_after_the_drivers_death(cluster: Cluster) -> None:
    """SIGKILL of the driver in the guided stage, then `resume` on the head."""
    (cluster.checkout / "recipes" / "separate.yaml").write_text(json.dumps(SEPARATE), encoding="utf-8")
    run = cluster.folder / "runs" / "separate"
    guided = run / "070_guided"
    place = (f"cluster.storage={run.parent}", "--address", cluster.address, "--no-follow")
    job = cluster.launch("submit", "recipes/separate.yaml", *place).stdout.strip()
    deadline = time.monotonic() + 400
    while len(rows(guided)) < 3:
        assert time.monotonic() < deadline, cluster.jobs("logs", job).stdout[-3000:]
        assert "FAILED" not in cluster.jobs("status", job).stdout, cluster.jobs("logs", job).stdout[-3000:]
        time.sleep(0.5)
    policy, rollout = machines_of("WorkerDict"), machines_of("TagprHttpServer")
    assert len(policy) == len(rollout) == 1 and policy != rollout
    command = ["launch.py", "run", "recipes/separate.yaml"]
    driver = next(p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[1:4] == command)
    driver.kill()
    while "FAILED" not in (status := cluster.jobs("status", job).stdout):
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    assert not (guided / "manifest.json").exists()

    done = cluster.on_head("resume", str(run))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    after = re.search(r"going on with stage 'guided' after step (\d) of 6", done.stdout)
    assert after is not None and int(after[1]) >= 2, done.stdout[-3000:]
    assert [row["step"] for row in rows(guided)] == [1, 2, 3, 4, 5, 6]
    # The prompts under way at the checkpoint are asked again; none is lost, none comes twice.
    requested = [
        question for step in range(1, 7) for question in questions(guided / "rollouts" / f"step_{step:04d}.jsonl")
    ]
    assert len(requested) == len(set(requested)) == 6 * 4
    assert set(requested) <= set(sampled(run / "030_prompts" / "train.parquet", 6 * 4 + 4))  # four are generated ahead
    ids = {path.name.rsplit("-", 1)[1] for path in (run / "wandb").glob("*run-*")}
    assert ids == {json.loads((run / "tracking.json").read_text(encoding="utf-8"))["id"]}


def rows(stage: Path) -> list[dict[str, Any]]:
    """Metrics of each step."""
    path = stage / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def questions(rollouts: Path) -> set[tuple[str, str]]:
    """Task and record of each prompt."""
    lines = [json.loads(line) for line in rollouts.read_text(encoding="utf-8").splitlines()]
    return {(line["task"], line["record_id"]) for line in lines}


def sampled(prompts: Path, count: int) -> list[tuple[str, str]]:
    """The first `count` questions of torch's RandomSampler, whose seed is the stage's."""
    import pyarrow.parquet as pq
    import torch

    records = [row["extra_info"] for row in pq.read_table(prompts).to_pylist()]
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(1)).tolist()
    return [(records[index]["task"], records[index]["record_id"]) for index in order[:count]]


def machines_of(actor: str) -> set[str]:
    """Network namespaces, other than this process's, in which Ray actors of that class run."""
    actual = set()
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or []).startswith(f"ray::{actor}"):
            actual.add(os.readlink(f"/proc/{process.pid}/ns/net"))
    return actual - {os.readlink("/proc/self/ns/net")}
