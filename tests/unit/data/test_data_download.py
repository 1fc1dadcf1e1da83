"""The downloader against a local server that misbehaves in every known way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.data.download import BASE, TRIES, Fetched, addresses, fetch
from tagpr_rl.data.tasks import TASKS
from tagpr_rl.types import TagprError


def questions(n: int = 40) -> bytes:
    item = {"id": "i", "tag": "action", "description": "A chase."}
    text = TASKS["LaMP_2"].make_input(text="Two friends laugh.")
    return json.dumps([{"id": str(key), "input": text, "profile": [item]} for key in range(n)]).encode()


HTML = b"<!DOCTYPE html><html><body>Not here</body></html>"
PATH = "/LaMP_2/new/dev/dev_questions.json"


class Server(ThreadingHTTPServer):
    """Serves `body` at every path; `faults` are used up one per request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag = questions(), '"v1"'
        self.faults: list[str] = []
        self.always: str | None = None
        self.seen: list[tuple[str, str | None]] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.seen.append((self.path, wanted))
        fault = server.always or (server.faults.pop(0) if server.faults else "")
        body, start, status = server.body, 0, 200
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if fault in ("html", "html as json"):
            body = HTML
        fresh = self.headers.get("If-Range") in (None, server.etag)
        if wanted and fresh and fault not in ("no range", "html", "html as json"):
            start, status = int(wanted[6:-1]), 206
            if start >= len(body):
                self.send_error(416)
                return
            if fault == "wrong range":
                start = 0
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8" if fault == "html" else "application/json")
        size = len(body) - start + {"says more": 50, "says less": -50}.get(fault, 0)
        if fault != "no length":
            self.send_header("Content-Length", str(size))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("ETag", server.etag)
        self.end_headers()
        sent = body[start:]
        if fault == "cut":
            sent = sent[: len(sent) // 2]
        self.wfile.write(sent)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as actual:
        thread = threading.Thread(target=actual.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield actual
        actual.shutdown()


def get(server: Server, folder: Path) -> Fetched:
    [(url, path), _] = addresses(folder, "LaMP_2", "dev", "user", server.base)
    return fetch(url, path, "LaMP_2", "dev", say=lambda line: None, pause_s=0.0)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_official_addresses(tmp_path: Path) -> None:
    def first(task: str, split: str, setting: str) -> list[str]:
        return [url.removeprefix(BASE) for url, _ in addresses(tmp_path, task, split, setting)]

    assert first("LaMP_1", "train", "user") == [
        "/LaMP_1/train/train_questions.json",
        "/LaMP_1/train/train_outputs.json",
    ]
    assert first("LaMP-2", "dev", "user")[0] == "/LaMP_2/new/dev/dev_questions.json"
    assert first("LaMP_2N", "dev", "user")[0] == "/LaMP_2/dev/dev_questions.json"
    assert first("LaMP_2", "dev", "time")[1] == "/time/LaMP_2/new/dev/dev_outputs.json"
    assert first("LaMP_7", "test", "time") == ["/time/LaMP_7/test/test_questions.json"]  # no golds
    assert addresses(tmp_path, "LaMP_2", "dev", "user")[0][1] == tmp_path / "LaMP_2" / "dev_questions.json"
    with pytest.raises(TagprError, match="LaMP_6 is made from the Avocado corpus"):
        addresses(tmp_path, "LaMP_6", "dev", "user")


def test_a_good_server(server: Server, tmp_path: Path) -> None:
    actual = get(server, tmp_path)
    assert (actual.path.read_bytes(), actual.n_records, actual.how) == (server.body, 40, "downloaded")
    assert actual.n_bytes == len(server.body)
    assert server.seen == [(PATH, None)]
    assert left(tmp_path) == ["dev_questions.json"]
    assert get(server, tmp_path).how == "already there"
    assert len(server.seen) == 1


@pytest.mark.parametrize("fault", ["html", "html as json"])
def test_a_web_page_with_status_200(server: Server, tmp_path: Path, fault: str) -> None:
    server.always = fault
    with pytest.raises(TagprError) as caught:
        get(server, tmp_path)
    assert server.base + PATH in str(caught.value)
    assert ("web page (text/html)" if fault == "html" else "holds HTML, not JSON") in str(caught.value)
    assert left(tmp_path) == []
    assert len(server.seen) == 1  # another try would bring the same page


@pytest.mark.parametrize("faults", [["cut"], ["cut", "cut"], ["cut", "503", "cut"]])
def test_a_cut_body_is_continued(server: Server, tmp_path: Path, faults: list[str]) -> None:
    server.faults = list(faults)
    actual = get(server, tmp_path)
    assert (actual.path.read_bytes(), actual.how) == (server.body, "resumed")
    assert left(tmp_path) == ["dev_questions.json"]
    ranges = [wanted for _, wanted in server.seen]
    assert ranges[0] is None
    assert all(wanted and wanted.startswith("bytes=") for wanted in ranges[1:])


def test_a_cut_body_is_continued_by_the_next_command(server: Server, tmp_path: Path) -> None:
    server.always = "cut"  # each answer brings half of what is left
    with pytest.raises(TagprError, match=r"gave up after 5 attempts\. The same command goes on where it stopped"):
        get(server, tmp_path)
    assert len(server.seen) == TRIES
    part = next(tmp_path.rglob("*.part"))
    have = part.stat().st_size
    assert server.body.startswith(part.read_bytes())
    server.always = None
    actual = get(server, tmp_path)
    assert actual.path.read_bytes() == server.body
    assert server.seen[-1] == (PATH, f"bytes={have}-")


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.faults = ["cut", "no range"]
    assert get(server, tmp_path).path.read_bytes() == server.body
    server.faults = ["cut", "wrong range"]
    (tmp_path / "LaMP_2" / "dev_questions.json").unlink()
    assert get(server, tmp_path).path.read_bytes() == server.body


def test_a_file_that_changed_meanwhile_comes_whole(server: Server, tmp_path: Path) -> None:
    server.always = "cut"
    with pytest.raises(TagprError, match="gave up"):
        get(server, tmp_path)
    server.always, server.etag, server.body = None, '"v2"', questions(60).replace(b"chase", b"horse")
    actual = get(server, tmp_path)
    assert (actual.path.read_bytes(), actual.n_records) == (server.body, 60)


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    server.always = "cut"
    with pytest.raises(TagprError, match="gave up"):
        get(server, tmp_path)
    server.always, server.body = None, questions(2)  # the same ETag: the server lies
    assert get(server, tmp_path).path.read_bytes() == server.body


@pytest.mark.parametrize("status", ["404", "403"])
def test_no_such_file(server: Server, tmp_path: Path, status: str) -> None:
    server.always = status
    with pytest.raises(TagprError, match=f"{PATH}: the server answers {status}"):
        get(server, tmp_path)
    assert (left(tmp_path), len(server.seen)) == ([], 1)


def test_a_server_in_trouble(server: Server, tmp_path: Path) -> None:
    server.faults = ["500", "503", "429"]
    assert get(server, tmp_path).n_records == 40
    (tmp_path / "LaMP_2" / "dev_questions.json").unlink()
    server.always = "500"
    with pytest.raises(TagprError, match=r"answers 500 .*gave up after 5 attempts"):
        get(server, tmp_path)
    assert left(tmp_path) == []


def test_a_size_that_is_too_small_is_not_believed(server: Server, tmp_path: Path) -> None:
    server.always = "says less"  # the client reads what was announced: broken JSON
    with pytest.raises(TagprError, match=r"what the server sent is not LaMP_2's dev file: .*broken JSON"):
        get(server, tmp_path)
    assert left(tmp_path) == []


def test_a_size_that_is_too_large_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.faults = ["says more"]
    assert get(server, tmp_path).path.read_bytes() == server.body
    # The rest does not exist (416), so the file is fetched once more, whole.
    assert [wanted for _, wanted in server.seen] == [None, f"bytes={len(server.body)}-", None]
    server.always = "says more"
    (tmp_path / "LaMP_2" / "dev_questions.json").unlink()
    with pytest.raises(TagprError, match="gave up"):
        get(server, tmp_path)


def test_without_a_length_the_text_decides(server: Server, tmp_path: Path) -> None:
    server.faults = ["no length"]
    assert get(server, tmp_path).n_records == 40
    (tmp_path / "LaMP_2" / "dev_questions.json").unlink()
    server.body = server.body[:-10]
    server.faults = ["no length"]
    with pytest.raises(TagprError, match="broken JSON"):
        get(server, tmp_path)
    assert left(tmp_path) == []


def test_another_tasks_file(server: Server, tmp_path: Path) -> None:
    [(url, path), _] = addresses(tmp_path, "LaMP_3", "dev", "user", server.base)
    with pytest.raises(TagprError, match=r"not LaMP_3's dev file: .*LaMP_3 items have id, text, score"):
        fetch(url, path, "LaMP_3", "dev", say=lambda line: None, pause_s=0.0)
    assert left(tmp_path) == []


def test_nobody_listens(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(TagprError, match="the connection failed"):
        fetch("http://127.0.0.1:9/x", tmp_path / "dev_questions.json", "LaMP_2", "dev", say=said.append, pause_s=0.0)
    assert len(said) == TRIES - 1
