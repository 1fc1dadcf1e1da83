"""Three nodes, each in a network namespace: the rollout's, the policy's and the head are lost in turn.

The head has no device, so that policy and rollout sit on the other two. A node is lost with all its processes, or its
network falls silent.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_runs import ANSWER_S, Launched, Record, steps

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import machines

sys.path.pop(0)

pytestmark = [pytest.mark.fault, pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(2400)]
WHERE = "A node of a cluster"
CPUS = 15
RECIPE = {
    "name": "separate",
    "data": {"prompt": {"max_tokens": 512, "max_response_tokens": 96}, "world": {"train_users": 30}},
    "platform": {"threads": 1},
    "placement": {"rollout": "separate"},
    "cluster": {"memory_gb": 2, "time_limit_h": 1},
    "log": {"wandb": "disabled"},
    "stages": {
        "data": {"kind": "data"},
        "model": {"kind": "model"},
        "prompts": {"kind": "prompts"},
        "chains": {"kind": "chains"},
        "sft": {"kind": "sft", "init": "model", "steps": 20, "batch_size": 8, "warmup_steps": 2},
        "prmu": {"kind": "prmu", "init": "sft", "steps": 5, "batch_size": 4},
        "guided": {
            "kind": "grpo", "init": "sft", "prmu": "prmu", "steps": 40, "prompts_per_step": 4, "group_size": 4,
            "micro_batch_size": 16, "save_every": 1,
        },
    },
}  # fmt: skip


class Hosts:
    """A cluster of three nodes, and a run on it whose command stands on the head."""

    def __init__(self, folder: Path, net: machines.Namespaces, nodes: machines.RayNodes) -> None:
        self.folder, self.net, self.nodes = folder, net, nodes
        self.run = folder / "separate"

    def launch(self, *arguments: str) -> Launched:
        around = self.net.command(self.net.names[0], own=self.folder / "ray")
        environment = {**self.nodes.environment, "RAY_ADDRESS": f"{self.nodes.head}:6379"}
        return Launched(*arguments, log=self.folder / "log", around=around, **environment)

    def name_of(self, title: str) -> str:
        """The machine on which a process with that title runs."""
        for name in self.net.names:
            if any(title in command for command in self.processes(name).values()):
                return name
        raise AssertionError(f"no process {title!r}")

    def processes(self, name: str) -> dict[int, str]:
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()
        actual = {}
        for pid in pids:
            try:
                actual[int(pid)] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return actual

    def lose(self, name: str, *, but: Launched | None = None) -> None:
        """End every process of a machine at once; `but` those of a command."""
        kept = set(but.pids("launch.py")) if but else set()
        for pid in self.processes(name):
            if pid not in kept:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def cable(self, name: str, state: str) -> None:
        """`up` or `down`."""
        number = self.net.names.index(name)
        subprocess.run(["ip", "link", "set", f"{self.net.bridge}-{number}", state], check=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    reason = machines.why_no_namespaces()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="ray") as name:  # short: Ray makes sockets below it
        folder = Path(name)
        (folder / "separate.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")
        with (
            machines.Namespaces(folder, 3) as net,
            machines.RayNodes(folder, net, CPUS, head_devices=0) as nodes,
        ):
            hosts = Hosts(folder, net, nodes)
            address = f"platform.ray_address={nodes.head}:6379"
            first = hosts.launch("run", str(folder / "separate.yaml"), f"out={folder}", address, "--until", "prmu")
            assert first.end(time.monotonic(), 400).code == 0, first.output[-3000:]
            yield hosts


FAULTS = ["rollout killed", "policy killed", "rollout silent", "policy silent", "head killed"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_node_that_is_lost_ends_the_stage_which_goes_on_later(hosts: Hosts, fault: str, record: Record) -> None:
    before = steps(hosts.run)
    run = hosts.launch("resume", str(hosts.run))
    run.wait_for(lambda: len(steps(hosts.run)) > len(before) + 1, "two steps")
    part, how = fault.split()
    titles = {"rollout": "ray::TagprHttpServer", "policy": "ray::WorkerDict"}
    name = hosts.name_of(titles[part]) if part in titles else hosts.net.names[0]
    assert part == "head" or name != hosts.net.names[0]
    began = time.monotonic()
    try:
        if how == "killed":
            hosts.lose(name, but=run)
        else:
            hosts.cable(name, "down")
        end = run.end(began)
    finally:
        if how == "silent":
            hosts.cable(name, "up")
    assert end.code == 2 and end.seconds <= ANSWER_S, f"{end.seconds:.0f} s, {end.code}: {end.output[-4000:]}"
    address = hosts.net.addresses[name]
    assert part == "head" or address in end.error, end.error
    assert run.left() == []
    said = re.sub(r"process \d+", "process ...", end.error.removeprefix("error: ").replace(str(hosts.folder), "..."))
    record(
        WHERE,
        f"the {part}'s node {how}" if part != "head" else "the head killed",
        f"ends with 2: {said[:140]}",
        end.seconds,
    )
    hosts.lose(name)
    hosts.nodes.start(name)
    if part == "head":  # the others lost their head, and end
        for other in hosts.net.names[1:]:
            hosts.lose(other)
            hosts.nodes.start(other)


def test_the_run_goes_on_to_its_end(hosts: Hosts) -> None:
    run = hosts.launch("resume", str(hosts.run))
    end = run.end(time.monotonic(), 400)
    assert end.code == 0, end.output[-3000:]
    assert steps(hosts.run) == list(range(1, 41))
