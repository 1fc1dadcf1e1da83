"""Machines that are none: network namespaces with a host name and an address each, a Ray cluster on them, checkouts."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKOUT = ("launch.py", "Makefile", "pyproject.toml", "tagpr_rl", "cluster", "recipes", "requirements")


def why_no_namespaces() -> str:
    """Why network namespaces cannot be made here; empty if they can."""
    absent = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: iproute2 util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "network namespaces are not allowed here"


class Namespaces:
    """`count` network namespaces with a host name and an address each, on one bridge that this machine is on, too."""

    def __init__(self, folder: Path, count: int) -> None:
        unique = os.getpid()  # two of these may stand side by side
        subnet = f"10.{200 + unique % 50}.{unique // 50 % 250}"
        self.bridge = f"tp{unique}"
        self.names = [f"tp{unique}n{number}" for number in range(1, count + 1)]
        self.host = f"{subnet}.254"
        self.addresses = {name: f"{subnet}.{number}" for number, name in enumerate(self.names, start=1)}
        self.hosts = folder / "hosts"

    def __enter__(self) -> Namespaces:
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.addresses.items())]
        self.hosts.write_text("\n".join(lines) + "\n", encoding="utf-8")
        try:
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("addr", "add", f"{self.host}/24", "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
            for number, name in enumerate(self.names):
                outer = f"{self.bridge}-{number}"
                _ip("netns", "add", name)
                _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
                _ip("link", "set", outer, "master", self.bridge, "up")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "eth0", "up")
                _ip("-n", name, "route", "add", "default", "via", self.host)
        except BaseException:
            self.remove()
            raise
        return self

    def command(self, name: str, *command: str, own: Path | None = None) -> list[str]:
        """`command` as it runs on the machine called `name`, which has a folder `own` of its own."""
        script = f"hostname {name} && mount --bind {self.hosts} /etc/hosts"
        if own is not None:
            mine = own.with_name(f"{own.name}-{name}")
            for folder in (own, mine):
                folder.mkdir(exist_ok=True)
            script += f" && mount --bind {mine} {own}"
        script += ' && exec "$@"'
        # Not `ip netns exec`: it mounts another /sys, without the cgroups that slurmd looks for.
        enter = ["nsenter", f"--net=/run/netns/{name}", "unshare", "--uts", "--mount"]
        return [*enter, "bash", "-c", script, "bash", *command]

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)

    def __exit__(self, *_: object) -> None:
        self.remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class RayNodes:
    """A Ray cluster with a token and a dashboard: one node on each machine, `devices` logical devices per node."""

    def __init__(self, folder: Path, net: Namespaces, cpus: int, devices: int = 1) -> None:
        self.folder, self.net = folder, net
        self.head = net.addresses[net.names[0]]
        self.address = f"http://{self.head}:8265"
        self.environment = {
            **os.environ,
            "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self.environment.pop("PYTHONPATH", None)  # a job's own copy of the code is what counts
        self.size = (f"--num-cpus={cpus}", f"--num-gpus={devices}", "--object-store-memory=100000000")
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> RayNodes:
        try:
            as_head = (f"--node-ip-address={self.head}", "--port=6379", f"--dashboard-host={self.head}")
            self._start(self.net.names[0], "--head", *as_head, f"--temp-dir={self.folder / 'ray'}")
            self._wait_for_dashboard(120.0)
            for name in self.net.names[1:]:
                self._start(name, f"--address={self.head}:6379")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, name: str, *arguments: str) -> None:
        start = ("ray", "start", "--block", "--disable-usage-stats", *self.size, *arguments)
        # In a shared folder, each node's download of a job's working directory would replace the one that another
        # node's driver runs in (ray 2.60 _private/runtime_env/packaging.py:936).
        command = self.net.command(name, *start, own=self.folder / "ray")
        with (self.folder / "ray.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )

    def _wait_for_dashboard(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/api/version", timeout=2).close()
                return
            except urllib.error.HTTPError:
                return  # it answers: without a token it says no
            except OSError:
                if time.monotonic() > deadline:
                    log = (self.folder / "ray.log").read_text(encoding="utf-8", errors="replace")
                    raise RuntimeError(f"no dashboard after {seconds:g} s: {log[-3000:]}") from None
                time.sleep(0.3)

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def copy_checkout(folder: Path, recipe: str) -> Path:
    """The code with one more recipe, recipes/job.yaml: a checkout that a job runs in."""
    checkout = folder / "checkout"
    checkout.mkdir(parents=True)
    for name in CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, checkout / name)
    (checkout / "recipes" / "job.yaml").write_text(recipe, encoding="utf-8")
    return checkout


def recipe_text(nodes: int, users: int, trained: bool) -> str:
    """A recipe without a stage that trains, or with one: three steps of SFT on one process per node."""
    stages = {
        "data": {"kind": "data"}, "model": {"kind": "model"},
        "prompts": {"kind": "prompts"}, "chains": {"kind": "chains"},
    }  # fmt: skip
    sft = {"kind": "sft", "init": "model", "dataset": "direct", "steps": 3, "batch_size": 4, "warmup_steps": 1}
    return json.dumps(
        {
            "name": "job",
            "data": {"prompt": {"max_tokens": 256}, "world": {"train_users": users, "held_out_users": 12}},
            "platform": {"nodes": nodes, "threads": 1},
            "cluster": {"memory_gb": 2, "time_limit_h": 1},
            "log": {"wandb": "disabled"},
            "stages": stages | ({"base": sft} if trained else {}),
        }
    )
