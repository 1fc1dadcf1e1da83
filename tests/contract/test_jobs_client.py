"""Addresses that no cluster answers: one clear error each, within seconds. No cluster is started."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tagpr_rl.backend.session.ray_session import automatic_address
from tagpr_rl.cli import main
from tagpr_rl.deploy.address import CONNECT_SECONDS, require_reachable
from tagpr_rl.types import TagprError

pytestmark = pytest.mark.stack


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent() -> Iterator[int]:
    """A server that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


@pytest.fixture
def stranger() -> Iterator[int]:
    """A web server that is no Ray dashboard."""

    class Quiet(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def refusal(capsys: pytest.CaptureFixture[str], address: str) -> str:
    started = time.monotonic()
    assert main(["jobs", "status", "raysubmit_x", "--address", address]) == 2
    assert time.monotonic() - started < CONNECT_SECONDS + 25  # the rest is the import of ray on a busy machine
    error = capsys.readouterr().err
    assert error.startswith(f"error: --address {address}: ") and "Traceback" not in error
    return error


def test_a_closed_port(closed_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no Ray dashboard answers there" in refusal(capsys, f"http://127.0.0.1:{closed_port}")


def test_a_silent_server(silent: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert "timed out" in refusal(capsys, f"http://127.0.0.1:{silent}")


def test_another_web_server(stranger: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert "404" in refusal(capsys, f"http://127.0.0.1:{stranger}")


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "nowhere"])
def test_what_is_no_address(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "it looks like http://127.0.0.1:8265" in refusal(capsys, address)


def test_a_recipe_is_refused_before_the_cluster_is_asked(closed_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"http://127.0.0.1:{closed_port}"
    assert main(["submit", "recipes/smoke.yaml", "--address", address]) == 2
    assert "cluster.storage: not set" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1", "host:port", ":6379"])
def test_a_ray_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(TagprError, match=f"ray_address={address}: not an address"):
        require_reachable(address)


def test_a_ray_address_that_nothing_answers(closed_port: int) -> None:
    with pytest.raises(TagprError, match="nothing answers there"):
        require_reachable(f"127.0.0.1:{closed_port}")


def test_the_automatic_address_is_the_environments_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6379")
    assert automatic_address() == "10.1.2.3:6379"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(TagprError, match="no Ray cluster was started on this machine"):
        automatic_address()
