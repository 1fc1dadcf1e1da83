"""A proxy on loopback that refuses everything, as those of companies refuse addresses they do not know."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def refusing_proxy(status: int = 403) -> Iterator[tuple[str, list[str]]]:
    """(its address, the request lines that came) while it runs."""
    lines: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            lines.append(self.requestline)
            body = b"<html>Access denied by policy</html>"
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_CONNECT = refuse

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", lines
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
