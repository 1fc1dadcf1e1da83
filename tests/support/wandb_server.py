"""A server on loopback that takes what `wandb sync` sends and keeps a run's rows as W&B does: by their place in a file.

It answers the GraphQL requests of a run's upload (UpsertBucket, RunResumeStatus, and empty objects for the rest) and
the file stream. W&B writes line `offset + i` of a file with the i-th line of a chunk: what is sent to a place that is
taken replaces what stood there.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY = "wandb-history.jsonl"


class WandbServer(ThreadingHTTPServer):
    """One project of one user."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.files: dict[tuple[str, str], dict[int, str]] = {}
        """(run id, file) -> line by its place."""
        self.replaced: list[tuple[str, str, int]] = []
        """Lines that a later chunk wrote over with another content."""
        self.summary: dict[str, dict[str, Any]] = {}
        self.known: set[str] = set()
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def history(self, run: str) -> list[dict[str, Any]]:
        """The run's rows in the order of their places; every place must be taken."""
        lines = self.files.get((run, HISTORY), {})
        assert sorted(lines) == list(range(len(lines)))
        return [json.loads(lines[place]) for place in sorted(lines)]

    def bucket(self, run: str) -> dict[str, Any]:
        """The run as GraphQL shows it."""
        lines = {file: len(own) for (name, file), own in self.files.items() if name == run}
        history = self.files.get((run, HISTORY), {})
        tail = [history[max(history)]] if history else []
        return {
            "id": f"id-{run}", "name": run, "displayName": run, "description": "", "notes": "", "tags": [],
            "sweepName": None, "state": "finished", "config": "{}", "wandbConfig": json.dumps({"t": {}}),
            "historyLineCount": lines.get(HISTORY, 0), "eventsLineCount": lines.get("wandb-events.jsonl", 0),
            "logLineCount": lines.get("output.log", 0), "historyTail": json.dumps(tail), "eventsTail": "[]",
            "summaryMetrics": json.dumps(self.summary.get(run, {})),
            "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}},
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self._body()
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/graphql"):
            with self.server.lock:
                self._reply(self._graphql(json.loads(body)))
        elif stream := re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            with self.server.lock:
                self._take(stream[1], json.loads(body))
            self._reply({"limits": {}})
        else:
            self._reply({})

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            data = gzip.decompress(data)
        return data

    def _reply(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        query, given = str(request.get("query", "")), request.get("variables") or {}
        name = match[1] if (match := re.search(r"(?:query|mutation)\s+(\w+)", query)) else "?"
        self.server.requests.append(name)
        run = str(given.get("name") or given.get("run") or "")
        if name == "UpsertBucket":
            inserted = run not in self.server.known
            self.server.known.add(run)
            return {"data": {"upsertBucket": {"bucket": self.server.bucket(run), "inserted": inserted}}}
        if "ResumeStatus" in name:
            bucket = self.server.bucket(run) if run in self.server.known else None
            return {"data": {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": bucket}}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.server.url}/upload"} for file in given["files"]]
            return {"data": {"createRunFiles": {"runID": f"id-{run}", "uploadHeaders": [], "files": files}}}
        if name == "Viewer":
            return {
                "data": {"viewer": {"id": "v", "entity": "e", "username": "e", "flags": "{}", "teams": {"edges": []}}}
            }
        if name == "ServerInfo":
            return {
                "data": {"serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None}}
            }
        return {"data": {}}

    def _take(self, run: str, body: dict[str, Any]) -> None:
        for file, chunk in (body.get("files") or {}).items():
            lines = self.server.files.setdefault((run, file), {})
            for place, line in enumerate(chunk["content"], start=int(chunk["offset"])):
                if file == "wandb-summary.json":
                    self.server.summary[run] = json.loads(line)
                elif lines.get(place, line) != line:
                    self.server.replaced.append((run, file, place))
                lines[place] = line


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """The server, serving."""
    with WandbServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
