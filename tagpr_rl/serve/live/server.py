"""The live view's HTTP server. It answers a handful of fixed addresses and knows no files.

Standard library: `tagpr watch` runs with the light install, and one browser asks for a few hundred bytes every two
seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import sys
import urllib.parse
from collections.abc import Callable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tagpr_rl.report.page.embed import LIVE_SCRIPTS, environment, script, script_source
from tagpr_rl.serve.access import access
from tagpr_rl.serve.live.prometheus import text_format
from tagpr_rl.serve.live.view import LiveRun
from tagpr_rl.types import TagprError

HTML, JSON, PLAIN = "text/html; charset=utf-8", "application/json", "text/plain; version=0.0.4; charset=utf-8"
LONGEST_FORM = 4096
"""Bytes of a login."""
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class LiveServer(ThreadingHTTPServer):
    """Serves one run. TagprError if the address cannot be had, or needs a token that is not there."""

    daemon_threads = True

    def __init__(self, live: LiveRun, host: str, port: int) -> None:
        self.live, self.access = live, access(host)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise TagprError(
                f"--host {host} --port {port}: {error}; choose another port, or 0 for a free one"
            ) from None
        self._key = secrets.token_bytes(32)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = f"[{self.access.host}]" if ":" in self.access.host else self.access.host
        return f"http://{host}:{self.server_address[1]}/"

    @property
    def cookie(self) -> str:
        """Name of the cookie. Ports share a host's cookies."""
        return f"tagpr_{self.server_address[1]}"

    def session(self) -> str:
        """The cookie of who has shown the token; it does not hold the token."""
        return hmac.new(self._key, self.access.token.encode(), hashlib.sha256).hexdigest()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no event; anything else is a mistake of this project and keeps its traceback."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: LiveServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tagpr", ""
    timeout = 30

    def do_GET(self) -> None:
        """A page or a part of it."""
        path, _, query = self.path.partition("?")
        route: Callable[[dict[str, str]], None] | None = {
            "/": self._page,
            "/state": self._state,
            "/curves": self._curves,
            "/traces": self._traces,
            "/links": self._links,
            "/metrics": self._metrics,
        }.get(path)
        if not self.server.access.knows(self.headers.get("Host")):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to localhost and 127.0.0.1 alone")
        elif route is None:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")
        elif self._may():
            route(dict(urllib.parse.parse_qsl(query, max_num_fields=8)))
        elif path == "/":
            self._login(HTTPStatus.OK)
        else:
            self._refuse(HTTPStatus.UNAUTHORIZED, "show the token: Authorization: Bearer TOKEN")

    def do_POST(self) -> None:
        """The login form."""
        length = self.headers.get("Content-Length", "")
        self.close_connection = True  # whatever of the body is not read must not become the next request
        if not self.server.access.knows(self.headers.get("Host")) or self.path != "/login":
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")
        elif not length.isdecimal() or int(length) > LONGEST_FORM:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a login is shorter")
        else:
            form = urllib.parse.parse_qs(self.rfile.read(int(length)).decode("ascii", "replace"), max_num_fields=8)
            if self.server.access.lets_in(form.get("token", [""])[0]):
                cookie = f"{self.server.cookie}={self.server.session()}; HttpOnly; SameSite=Strict; Path=/"
                self._send(HTTPStatus.SEE_OTHER, b"", PLAIN, {"Location": "/", "Set-Cookie": cookie})
            else:
                self._login(HTTPStatus.FORBIDDEN)

    def _may(self) -> bool:
        """Whether the request shows the token, or the cookie of an earlier login."""
        if self.server.access.bearer(self.headers.get("Authorization")):
            return True
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return False
        return cookie is not None and secrets.compare_digest(cookie.value.encode(), self.server.session().encode())

    def _page(self, _: dict[str, str]) -> None:
        allowed = f"script-src {script_source(script(LIVE_SCRIPTS))}; connect-src 'self'; form-action 'none'"
        self._send(HTTPStatus.OK, self.server.live.page().encode(), HTML, policy=allowed)

    def _state(self, _: dict[str, str]) -> None:
        self._json(self.server.live.state())

    def _curves(self, _: dict[str, str]) -> None:
        self._send(HTTPStatus.OK, self.server.live.curves().encode(), HTML)

    def _traces(self, query: dict[str, str]) -> None:
        body = self.server.live.traces(query.get("generation", ""), _index(query.get("mark")))
        self._send(HTTPStatus.OK, body, JSON)

    def _links(self, query: dict[str, str]) -> None:
        links = self.server.live.links(query.get("generation", ""), _index(query.get("trace")))
        if links is None:
            self._refuse(HTTPStatus.NOT_FOUND, "no such response")
        else:
            self._json(links)

    def _metrics(self, _: dict[str, str]) -> None:
        live = self.server.live
        self._send(HTTPStatus.OK, text_format(live.recipe.name, live.rows(), live.progress()).encode(), PLAIN)

    def _login(self, status: HTTPStatus) -> None:
        text = environment().get_template("login.html.j2").render(wrong=status is not HTTPStatus.OK)
        self._send(status, text.encode(), HTML, policy="form-action 'self'")

    def _json(self, value: Any) -> None:
        self._send(HTTPStatus.OK, json.dumps(value, allow_nan=False).encode(), JSON)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(status, f"{why}\n".encode(), PLAIN)

    def _send(
        self, status: HTTPStatus, body: bytes, kind: str, headers: dict[str, str] | None = None, policy: str = ""
    ) -> None:
        self.send_response(status)
        rules = ["default-src 'none'", "style-src 'unsafe-inline'", "base-uri 'none'", "frame-ancestors 'none'"]
        allowed = [*rules, policy or "form-action 'none'"]
        sent = {"Content-Security-Policy": "; ".join(allowed), "Content-Type": kind, **HEADERS, **(headers or {})}
        for name, value in (sent | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: a request's line is the client's text."""


def _index(text: str | None) -> int:
    """A number of a query; -1 if it is none."""
    return int(text) if text and text.isdecimal() and text.isascii() and len(text) < 10 else -1
