"""The live view over HTTP: what is served, to whom, and what stays quiet. Servers are on free ports of loopback."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_report import EVIL, GOOD, jsonl, make_recipe, make_run, rollout

from tagpr_rl.cli import main
from tagpr_rl.config import dump_recipe
from tagpr_rl.files import write_json
from tagpr_rl.run import metrics
from tagpr_rl.run.layout import RunDir
from tagpr_rl.serve.access import VARIABLE
from tagpr_rl.serve.live import view
from tagpr_rl.serve.live.server import LiveServer
from tagpr_rl.serve.live.view import LiveRun
from tagpr_rl.types import TagprError

TOKEN = "0123456789abcdef"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(view, "LOOK_S", 0.0)
    run = make_run(tmp_path)
    write_json(run.resolved, dump_recipe(make_recipe()))
    return run


@pytest.fixture
def server(run: RunDir) -> Iterator[LiveServer]:
    yield from serving(run)


def serving(run: RunDir, host: str = "127.0.0.1") -> Iterator[LiveServer]:
    with LiveServer(LiveRun(run, make_recipe()), host, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: LiveServer, path: str, headers: dict[str, str] | None = None, body: str | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request("GET" if body is None else "POST", path, body, headers or {})
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    return reply, data


def state(server: LiveServer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(server, "/state")[1])
    return found


def test_the_page_is_the_report_with_a_strict_policy(server: LiveServer) -> None:
    reply, data = ask(server, "/")
    page = data.decode()
    assert reply.status == 200 and EVIL not in page and "What was learned" in page and "Training curves" in page
    policy = reply.headers["Content-Security-Policy"]
    for rule in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'",
                 "connect-src 'self'"):  # fmt: skip
        assert rule in policy
    assert policy.count("script-src 'sha256-") == 1 and "unsafe-eval" not in policy
    assert reply.headers["X-Content-Type-Options"] == "nosniff" and reply.headers["Cache-Control"] == "no-store"
    assert page.count("<script") == 1 and "viewer-data" not in page.partition("<script")[0]


def test_a_step_changes_what_it_concerns(server: LiveServer, run: RunDir) -> None:
    server.live._curves_due = 0.0
    before = state(server)
    # prompts has no folder: the first stage that is not done, and no process works on the run.
    assert before["now"] == {"state": "waiting", "stage": "prompts", "step": "", "time": "", "score": ""}
    assert before["stages"] == [6, 10] and before["alerts"] == 0 and before["error"] == ""
    rows = [rollout(4, 0, "four", 0.5, 0.0), rollout(4, 1, GOOD, 0.5, 0.0)]
    jsonl(run.stage(7, "guided").rollouts / "step_0004.jsonl", rows)
    after = state(server)
    assert (after["page"], after["curves"]) == (before["page"], before["curves"])
    assert (after["generation"], after["mark"]) == (before["generation"], before["mark"] + 1)
    new = json.loads(ask(server, f"/traces?generation={before['generation']}&mark={before['mark']}")[1])
    assert [trace["r"][0] for trace in new["traces"]] == [0.5, 0.5]
    server.live._curves_due = 0.0
    metrics.append(run.stage(8, "explore").metrics, {"step": 3, "reward/total/mean": 1.5})
    assert state(server)["curves"] == after["curves"] + 1
    assert b">1.5<" in ask(server, "/curves")[1]
    jsonl(run.stage(7, "guided").root / "alerts.jsonl", [{"step": 3, "kind": "entropy", "text": EVIL}])
    last = state(server)
    assert last["page"] == after["page"] + 1 and last["alerts"] == 1 and EVIL.encode() not in ask(server, "/")[1]


def test_curves_are_not_drawn_more_often_than_their_share_allows(server: LiveServer, run: RunDir) -> None:
    before = state(server)["curves"]
    server.live._curves_due = float("inf")
    metrics.append(run.stage(8, "explore").metrics, {"step": 3, "reward/total/mean": 1.5})
    assert state(server)["curves"] == before
    server.live._curves_due = 0.0
    assert state(server)["curves"] == before + 1


def test_a_broken_file_is_named_and_the_page_stays(server: LiveServer, run: RunDir) -> None:
    path = run.stage(7, "guided").root / "alerts.jsonl"
    path.write_text("nonsense\n")
    assert "alerts.jsonl, line 1 is not valid JSON" in state(server)["error"]
    assert ask(server, "/")[0].status == 200
    path.unlink()
    assert state(server)["error"] == ""


@pytest.mark.parametrize(
    "path",
    ["/resolved.json", "/../resolved.json", "/..%2fresolved.json", "//etc/passwd", "/state/..", "/report.html", "/%00",
     "/links?generation=x&trace=0", "/links?trace=-1", "/links?trace=99999999999999999999", "/login"],
)  # fmt: skip
def test_nothing_else_is_served(server: LiveServer, path: str) -> None:
    reply, data = ask(server, path)
    assert reply.status == 404 and len(data) < 100
    assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_another_site_s_name_is_not_answered(server: LiveServer) -> None:
    for path in ("/", "/state", "/traces", "/metrics", "/nothing"):
        reply, data = ask(server, path, {"Host": "evil.example:80"})
        assert reply.status == 421 and b"localhost" in data
    assert ask(server, "/state", {"Host": "localhost:1"})[0].status == 200


def test_the_token_opens_the_page(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TagprError, match=r"--host 0\.0\.0\.0"):
        LiveServer(LiveRun(run, make_recipe()), "0.0.0.0", 0)
    monkeypatch.setenv(VARIABLE, TOKEN)
    for server in serving(run):
        page = ask(server, "/")[1].decode()
        assert 'type="password"' in page and "tiny" not in page
        for path in ("/state", "/traces", "/links", "/curves", "/metrics"):
            assert ask(server, path)[0].status == 401
            assert ask(server, f"{path}?token={TOKEN}")[0].status == 401  # an address is no place for it
        assert ask(server, "/state", {"Authorization": f"Bearer {TOKEN}"})[0].status == 200
        assert ask(server, "/state", {"Authorization": "Bearer wrong"})[0].status == 401
        reply, data = ask(server, "/login", body="token=wrong")
        assert reply.status == 403 and b"not the token" in data and "Set-Cookie" not in reply.headers
        assert ask(server, "/login", body="token=" + "x" * 5000)[0].status == 413
        reply, _ = ask(server, "/login", body=f"token={TOKEN}")
        cookie = reply.headers["Set-Cookie"]
        assert reply.status == 303 and reply.headers["Location"] == "/"
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
        session = cookie.partition(";")[0]
        assert b"What was learned" in ask(server, "/", {"Cookie": session})[1]
        assert ask(server, "/state", {"Cookie": session + "0"})[0].status == 401
        assert ask(server, "/state", {"Cookie": "\x01;=,"})[0].status == 401
    out, err = capfd.readouterr()
    assert TOKEN not in out + err and err == ""


def test_metrics_are_prometheus_text(server: LiveServer) -> None:
    reply, data = ask(server, "/metrics")
    text = data.decode()
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE tagpr_metric gauge\n" in text
    assert 'tagpr_metric{run="tiny",stage="guided",metric="reward/total/mean"} 1.02\n' in text
    assert 'tagpr_stage_step{run="tiny",stage="guided"} 2.0\n' in text
    assert 'tagpr_stage_state{run="tiny",stage="data",state="done"} 1.0\n' in text
    assert "pg_loss" not in text  # NaN in the file


def test_labels_are_escaped() -> None:
    from tagpr_rl.serve.live.prometheus import labels

    assert labels(run='a"b\\c\nd') == '{run="a\\"b\\\\c\\nd"}'


def test_follow_without_a_terminal_prints_a_line_and_ends(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """No process works on the run, so there is nothing to wait for. sft has no folder and comes before guided."""
    assert main(["watch", str(run.root), "--follow"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "stages are done" in out


def test_a_port_that_is_taken_is_a_clear_mistake(
    server: LiveServer, run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(run.root), "--port", str(server.server_address[1])]) == 2
    assert "choose another port" in capsys.readouterr().err


def test_nothing_is_written(server: LiveServer, run: RunDir) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}

    before = files()
    for path in ("/", "/state", "/curves", "/traces", "/metrics"):
        ask(server, path)
    assert files() == before
