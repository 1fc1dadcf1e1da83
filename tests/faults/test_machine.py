"""What a machine does to a run: full disks, little memory, a clock set back, taken ports, another Ray."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_runs import ANSWER_S, GUIDED, Launched, Record, prepared, steps

pytestmark = [pytest.mark.fault, pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(2400)]
WHERE = "The machine"
PORTS = (6379, 8265, 10001, 29500, 52365, 8000, 12345)
"""What Ray, torch and vLLM take where nobody says otherwise."""
CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("machine"))


def guided(before: Path, out: Path, count: int) -> tuple[str, ...]:
    """Arguments of a run that has the stages of `before` and `count` guided steps."""
    recipe = before.parent / "short.yaml"
    steps = f"stages.guided.steps={count}"
    return ("run", str(recipe), f"out={out}", "name=other", "--from", f"{before}:prmu", steps)


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")


@contextlib.contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own in a file, on a loop device."""
    image, place = folder / "image", folder / "small"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_a_disk_that_fills_in_the_middle_is_named_and_the_run_goes_on_when_it_has_room(
    before: Path, tmp_path: Path, record: Record
) -> None:
    needs_root()
    with mounted(tmp_path, 600) as small:
        shutil.copytree(before, small / "short", symlinks=True)
        arguments = guided(small / "short", small, 6)
        run = Launched(*arguments, log=tmp_path / "log")
        guided_folder = small / "other"
        run.wait_for(lambda: len(steps(guided_folder)) >= 2, "two steps")
        with (small / "filler").open("wb") as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 20))
        end = run.end(time.monotonic())
        assert end.code == 2 and end.seconds <= ANSWER_S, end.output[-3000:]
        assert "space" in end.error and run.left() == []
        (small / "filler").unlink()
        again = Launched("resume", str(guided_folder), log=tmp_path / "log")
        assert again.end(time.monotonic()).code == 0, again.output[-3000:]
        assert steps(guided_folder) == [1, 2, 3, 4, 5, 6]
    record(
        WHERE, "the disk of the run fills in the middle", f"ends with 2: {end.error[:120]}; goes on later", end.seconds
    )


@pytest.mark.parametrize(("place", "megabytes"), [("/dev/shm", 8), ("TMPDIR", 1)])
def test_a_small_file_system_of_ray_ends_before_the_first_stage_or_harms_nothing(
    before: Path, tmp_path: Path, place: str, megabytes: int, record: Record
) -> None:
    needs_root()
    point = Path(place) if place.startswith("/") else tmp_path / "tmp"
    point.mkdir(exist_ok=True)
    mount = f'mount -t tmpfs -o size={megabytes}m small {point} && exec "$@"'
    around = ("unshare", "--mount", "bash", "-c", mount, "bash")
    began = time.monotonic()
    named = {} if place.startswith("/") else {"TMPDIR": str(point)}
    run = Launched(*guided(before, tmp_path, 2), log=tmp_path / "log", around=around, **named)
    end = run.end(began)
    fault = f"{place} with {megabytes} MiB"
    assert run.left() == []
    if end.code == 0:
        assert steps(tmp_path / "other") == [1, 2]
        record(WHERE, fault, "harms nothing", end.seconds)
        return
    assert end.code == 2 and end.seconds <= ANSWER_S, end.output[-3000:]
    assert str(point) in end.output, end.output[-3000:]
    record(WHERE, fault, f"ends with 2: {end.error[:120]}".replace(str(tmp_path), "..."), end.seconds)


def test_too_little_memory_for_the_run_is_an_error(before: Path, tmp_path: Path, record: Record) -> None:
    if not os.access(CGROUP / "memory.limit_in_bytes", os.W_OK) and not CGROUP.is_dir():
        pytest.skip("no memory control group to write to")
    group = CGROUP / f"tagpr{os.getpid()}"
    group.mkdir()
    try:
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        run = Launched(
            *guided(before, tmp_path, 40), log=tmp_path / "log", around=("bash", "-c", enter, "bash")
        )  # fmt: skip
        run.wait_for(lambda: len(steps(tmp_path / "other")) >= 2, "two steps")
        used = int((group / "memory.usage_in_bytes").read_text())
        began = time.monotonic()
        # Pages that cannot be written back go only by ending a process.
        with contextlib.suppress(OSError):
            (group / "memory.limit_in_bytes").write_text(str(used // 2))
        end = run.end(began)
        assert end.code == 2 and end.seconds <= ANSWER_S, end.output[-3000:]
        assert run.left() == []
        record(WHERE, "a control group with half of the memory", f"ends with 2: {end.error[:120]}", end.seconds)
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def test_a_clock_that_is_set_back_harms_nothing(before: Path, tmp_path: Path, record: Record) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("libfaketime is not installed (Debian: faketime)")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    run = Launched(
        *guided(before, tmp_path, 12), log=tmp_path / "log", LD_PRELOAD=str(library), FAKETIME_NO_CACHE="1",
        FAKETIME_TIMESTAMP_FILE=str(clock), FAKETIME_DONT_FAKE_MONOTONIC="1",
    )  # fmt: skip
    run.wait_for(lambda: len(steps(tmp_path / "other")) >= 2, "two steps")
    began = time.monotonic()
    clock.write_text("-1h")
    end = run.end(began)
    assert end.code == 0, end.output[-3000:]
    assert steps(tmp_path / "other") == list(range(1, 13)) and run.left() == []
    lines = (tmp_path / "other" / GUIDED / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["time_s"] >= 0 for line in lines)
    record(WHERE, "the clock is set back by an hour", "goes on to its end", end.seconds)


def test_taken_ports_and_another_ray_harm_nothing(before: Path, tmp_path: Path, record: Record) -> None:
    ray = Path(sys.executable).with_name("ray")
    other = {**os.environ, "RAY_TMPDIR": str(tmp_path / "o")}
    command = [ray, "start", "--head", "--port=6379", "--block", "--num-cpus=1", "--include-dashboard=false"]
    with contextlib.ExitStack() as stack:
        for port in PORTS[1:]:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # somebody else has it, which is as good
                listener.bind(("0.0.0.0", port))
                listener.listen()
        foreign = subprocess.Popen(
            command, env=other, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            began = time.monotonic()
            run = Launched(*guided(before, tmp_path, 2), log=tmp_path / "log")
            end = run.end(began)
            assert end.code == 0, end.output[-3000:]
            assert steps(tmp_path / "other") == [1, 2] and run.left() == []
            assert foreign.poll() is None, "the other Ray lives"
        finally:
            os.killpg(foreign.pid, signal.SIGKILL)
            foreign.wait()
    record(WHERE, "usual ports are taken, another Ray runs", "harms nothing; the other Ray lives", end.seconds)
