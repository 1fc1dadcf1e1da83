"""ASGI middleware: the host's name, the token and the size of a body are looked at before a request is read."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from tagpr_rl.serve.access import Access

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """Refuses what `access` does not let in, and bodies of more than `most_bytes`; `open_paths` need no token."""

    def __init__(self, app: App, access: Access, most_bytes: int, open_paths: Collection[str] = ()) -> None:
        self._app, self._access, self._most, self._open = app, access, most_bytes, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if not self._access.knows(headers.get("host")):
            await refuse(send, 421, "this server answers to localhost and 127.0.0.1 alone")
        elif scope["path"] not in self._open and not self._access.bearer(headers.get("authorization")):
            await refuse(send, 401, "show the token: Authorization: Bearer TOKEN")
        elif (body := await self._body(headers.get("content-length", ""), receive)) is None:
            await refuse(send, 413, f"a body has at most {self._most:,} bytes; send fewer requests at a time")
        else:
            await self._app(scope, _first(body, receive), send)

    async def _body(self, length: str, receive: Receive) -> bytes | None:
        """The whole body, or None if it is too large, as a chunked one says only when it has come."""
        if length.isdecimal() and int(length) > self._most:
            return None
        body, more = b"", True
        while more and len(body) <= self._most:
            message = await receive()
            body += message.get("body", b"")
            more = message["type"] == "http.request" and message.get("more_body", False)
        return body if len(body) <= self._most else None


def _first(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then whatever comes."""
    read = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def refuse(send: Send, status: int, why: str) -> None:
    """Answer with an error of the service's form, and end the connection: its body was not read."""
    body = json.dumps({"errors": [{"field": "", "problem": why}]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")] + ([(b"www-authenticate", b"Bearer")] if status == 401 else [])
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
