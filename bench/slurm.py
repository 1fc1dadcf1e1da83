"""A real Slurm on this machine, and a rendered job on it: submit, cancel, submit again, requeue, finish.

    python bench/slurm.py [--nodes 2]           # as root, with slurmctld, slurmd, munged and ip installed

Every Slurm node is a network namespace of its own, so that its Ray node has an address of its own. Nothing of a
Slurm that is installed is used but its programs; ports, sockets and folders are this program's.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machines import Namespaces, copy_checkout, recipe_text, why_no_namespaces

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
CPUS = 8
GPU, FEATURE = "h200", "node-type"
"""What the nodes say they have, so that scripts that ask for it are taken. No job uses it."""
STATES_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def missing() -> str:
    """Why Slurm cannot be started here; empty if it can."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurmctld slurmd slurm-client munge)"
    return why_no_namespaces()


class Slurm:
    """munged, slurmctld and one slurmd per name, with a configuration of their own under `folder`."""

    def __init__(self, folder: Path, net: Namespaces) -> None:
        self.folder, self.net = folder, net
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "VENV": sys.prefix}
        # The rendered job's own copy of the code is what counts.
        self.environment.pop("PYTHONPATH", None)

    def __enter__(self) -> Slurm:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        """Start the daemons; returns when every node is idle."""
        self.folder.mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        socket = self.folder / "munge.socket"
        (self.folder / "slurm.conf").write_text(self.configuration(socket), encoding="utf-8")
        devices = [self.folder / f"gpu{number}" for number in range(8)]
        for device in devices:
            device.touch()  # Slurm counts files
        gres = f"Name=gpu Type={GPU} File={self.folder}/gpu[0-7]\n"
        (self.folder / "gres.conf").write_text(gres, encoding="utf-8")
        (self.folder / "state").mkdir()
        flags = [f"--{name}={self.folder}/munge.{name.split('-')[0]}" for name in ("pid-file", "log-file", "seed-file")]
        self._start(["munged", "--foreground", "--force", f"--socket={socket}", f"--key-file={key}", *flags])
        while not socket.exists():
            time.sleep(0.05)
        self._start(["slurmctld", "-D"])
        for name in self.net.names:
            self._start(self.net.command(name, "slurmd", "-D", "-N", name))
        deadline = time.monotonic() + 60
        while (states := self.run("sinfo", "--noheader", "--format=%t").split()) != ["idle"]:
            if time.monotonic() > deadline or states == ["inval"]:
                log = (self.folder / "daemons.log").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"Slurm's nodes are not idle: {self.run('sinfo', '-N', '-l')}\n{log[-2000:]}")
            time.sleep(0.2)

    def configuration(self, socket: Path) -> str:
        """slurm.conf: no cgroups, no accounting, jobs as they come."""
        folder, net = self.folder, self.net
        nodes = "\n".join(
            f"NodeName={name} NodeAddr={address} CPUs={CPUS} RealMemory=8000 Gres=gpu:{GPU}:8 Feature={FEATURE}"
            for name, address in net.addresses.items()
        )
        return f"""ClusterName=bench
SlurmctldHost={os.uname().nodename}({net.host})
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={socket},cred_expire=5
SlurmctldPort=6917
SlurmdPort=6918
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
GresTypes=gpu
ReturnToService=2
KillWait=5
JobRequeue=1
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

    def _start(self, command: list[str]) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """A command beside Slurm's daemons; RuntimeError with what it said if it fails."""
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """`scontrol show job` as a dict: JobState, Restarts, ExitCode, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, seconds: float) -> dict[str, str]:
        """The job once it has ended; RuntimeError after `seconds`."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in STATES_ENDED:
            if time.monotonic() > deadline:
                raise RuntimeError(f"job {number} is still {job['JobState']} after {seconds:g} s")
            time.sleep(0.5)
        return job

    def __exit__(self, *_: object) -> None:
        if self.processes:
            subprocess.run(["scancel", "--full", "--user=root"], env=self.environment, capture_output=True, check=False)
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def render(slurm: Slurm, checkout: Path, *overrides: str) -> None:
    """Write the recipe's slurm.sbatch into the checkout."""
    command = [sys.executable, "launch.py", "render", "recipes/job.yaml", "--target", "slurm", "--out", "."]
    slurm.run(*command, *overrides, cwd=checkout)


def submit(slurm: Slurm, checkout: Path) -> str:
    """Render the recipe and submit the script; returns the job's number."""
    render(slurm, checkout)
    return slurm.run("sbatch", "--parsable", "slurm.sbatch", cwd=checkout)


def wait_for(path: Path, log: Path, seconds: float = 120.0) -> None:
    """Until `path` exists; RuntimeError with the job's log after `seconds`."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            text = log.read_text(encoding="utf-8") if log.exists() else "no log"
            raise RuntimeError(f"{path} is not there after {seconds:g} s: {text[-2000:]}")
        time.sleep(0.05)


def interrupted_job(slurm: Slurm, checkout: Path) -> dict[str, object]:
    """Submit, cancel in the second stage, submit again, signal the time limit in the third stage, let it finish."""
    run = checkout / "runs" / "job"
    started = time.monotonic()
    first = submit(slurm, checkout)
    wait_for(run / "010_data" / "manifest.json", checkout / f"job-{first}.log")
    slurm.run("scancel", first)
    cancelled = slurm.wait(first, 60)
    done_before = sorted(path.parent.name for path in run.glob("*/manifest.json"))
    second = submit(slurm, checkout)
    log = checkout / f"job-{second}.log"
    wait_for(run / "020_model" / "manifest.json", log)
    slurm.run("scancel", "--batch", "--signal=USR1", second)  # what Slurm sends before the time limit
    ended = slurm.wait(second, 180)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "first": cancelled["JobState"],
        "done_before": done_before,
        "second": ended["JobState"],
        "restarts": int(ended["Restarts"]),
        "exit_code": ended["ExitCode"],
        "log": log.read_text(encoding="utf-8"),
        "done": sorted(path.parent.name for path in run.glob("*/manifest.json")),
    }


def several_nodes(slurm: Slurm, checkout: Path) -> dict[str, object]:
    """One job on all nodes: Ray's head and workers start, SFT runs one process on each."""
    started = time.monotonic()
    number = submit(slurm, checkout)
    job = slurm.wait(number, 400)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "state": job["JobState"],
        "exit_code": job["ExitCode"],
        "log": (checkout / f"job-{number}.log").read_text(encoding="utf-8"),
        "done": sorted(path.parent.name for path in (checkout / "runs" / "job").glob("*/manifest.json")),
    }


def main() -> int:
    """Run both jobs and print what happened; 0 if both finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    nodes = parser.parse_args().nodes
    reason = missing()
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="slurm") as name:
        folder = Path(name)
        with Namespaces(folder, nodes) as net, Slurm(folder / "slurm", net) as slurm:
            one = interrupted_job(slurm, copy_checkout(folder / "one", recipe_text(1, 300, trained=False)))
            many = several_nodes(slurm, copy_checkout(folder / "many", recipe_text(nodes, 30, trained=True)))
    print(json.dumps({"interrupted": one, "several_nodes": many}, indent=2))
    return 0 if one["second"] == many["state"] == "COMPLETED" else 1


if __name__ == "__main__":
    sys.exit(main())
