"""Ray's Jobs API on a real cluster of two nodes, each in a network namespace: submit, output, status, stop, faults."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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

    def launch(self, *arguments: str, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "launch.py", *arguments]
        return subprocess.run(
            command, cwd=self.checkout, env=self.environment | environment, timeout=seconds,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

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
            yield Cluster(nodes.address, checkout, folder, nodes.environment)


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
    assert outside.returncode == 2 and "launch.py submit" in outside.stderr, outside.stderr
