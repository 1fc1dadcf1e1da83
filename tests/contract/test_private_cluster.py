"""Another local user reaches neither Ray nor TransferQueue of a run, and nothing of the cluster stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq

from tagpr_rl.backend.session.private import curve_keys, private_folder, with_keys
from tagpr_rl.backend.session.shell import PREFIX

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]


def test_another_user_can_run_nothing_in_a_run_s_cluster(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests/support/private_cluster.py"), str(tmp_path / "attack")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["rows"] == [3, 12]  # 0 + 1 + 2 and 3 + 4 + 5: the run's own processes are served
    assert results["ports"] >= 3 and results["sent"] == 0  # messages went out to every port
    assert results["joined"] != 0 and results["written"] is False
    assert results["joined_with_token"] == 0 and (tmp_path / "attack.token").read_text() == "ray"
    assert results["mode"] == 0o700 and results["left"] is False
    assert results["logged"] == [] and results["token_mode"] == 0o600


def exchange(server: tuple[bytes, bytes] | None, client: tuple[bytes, bytes] | None) -> bool:
    """Whether a message of a socket with the keys `client` reaches one with `server`; None = TransferQueue's own."""
    from transfer_queue.utils.zmq_utils import create_zmq_socket

    def made(kind: Any, keys: tuple[bytes, bytes] | None) -> Any:
        create = create_zmq_socket if keys is None else with_keys(create_zmq_socket, lambda: keys)
        return create(context, kind, "127.0.0.1")

    context = zmq.Context()
    try:
        router, dealer = made(zmq.ROUTER, server), made(zmq.DEALER, client)
        dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        dealer.send(b"hello")
        return bool(router.poll(1000))
    finally:
        context.destroy(linger=0)


def test_only_a_socket_with_the_run_s_keys_is_heard() -> None:
    own, other = curve_keys(b"\1" * 32), curve_keys(b"\2" * 32)
    assert exchange(own, own) is True
    assert exchange(own, other) is False and exchange(own, None) is False


def test_transfer_queue_still_hears_everyone_and_unpickles_it(tmp_path: Path) -> None:
    """If this fails, TransferQueue has a login or a safe decoder of its own, and `with_keys` can go."""
    from transfer_queue.utils.zmq_utils import ZMQMessage, ZMQRequestType

    class Call:
        def __reduce__(self) -> Any:
            return (tmp_path / "proof").write_text, ("ran",)

    assert exchange(None, None) is True
    frames = ZMQMessage.create(next(iter(ZMQRequestType)), "me", {"it": Call()}).serialize()
    ZMQMessage.deserialize(frames)
    assert (tmp_path / "proof").read_text() == "ran"


def test_sockets_inside_a_process_need_no_keys() -> None:
    """TransferQueue's workers talk over inproc with DEALER sockets at both ends."""
    from transfer_queue.utils.zmq_utils import create_zmq_socket

    context = zmq.Context()
    create = with_keys(create_zmq_socket, lambda: curve_keys(b"\1" * 32))
    first, second = create(context, zmq.DEALER, "127.0.0.1"), create(context, zmq.DEALER, "127.0.0.1")
    first.bind("inproc://workers")
    second.connect("inproc://workers")
    second.send(b"hello")
    assert first.recv() == b"hello"
    context.destroy(linger=0)


def test_the_folder_is_private_and_goes_and_an_error_leaves_the_logs(tmp_path: Path) -> None:
    environment = {"RAY_TMPDIR": str(tmp_path)}
    with private_folder(environment) as inner:
        assert inner.parent.stat().st_mode & 0o777 == 0o700 and inner.parent.parent == tmp_path
        assert len(f"{inner.parent}") - len(f"{tmp_path}") == len(f"/{PREFIX}abcdefgh")
        inner.mkdir()
    assert list(tmp_path.iterdir()) == []
    logs = tmp_path / "run" / "ray_logs"
    with pytest.raises(RuntimeError, match="worker"):
        fail_with_logs(environment, logs)
    assert (logs / "raylet.err").read_text() == "cause" and [p.name for p in tmp_path.iterdir()] == ["run"]


def fail_with_logs(environment: dict[str, str], logs: Path) -> None:
    with private_folder(environment, logs) as inner:
        session = inner / "session_1" / "logs"
        session.mkdir(parents=True)
        (session / "raylet.err").write_text("cause")
        (inner / "session_latest").symlink_to(session.parent)
        raise RuntimeError("worker")
