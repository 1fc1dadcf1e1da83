"""A chat completion server on loopback that misbehaves by a seeded schedule, and counts what it did.

`python chat_server.py [--faulty 0.1] ...` prints its port. Each question holds `#<number>`; what it gets depends on
the seed, the number, and how often it was asked before. GET /log gives everything as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import re
import struct
import subprocess
import sys
import urllib.request
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

AGAIN = ("429", "500", "slow", "cut_json", "cut_body", "html", "garbage")
"""Faults that another attempt may not meet."""
FINAL = ("400", "empty", "length", "wrong_indexes")
"""Faults that stay."""
PAID = ("ok", "empty", "length", "wrong_indexes")
"""What counts as a delivered completion."""
UNSURE = ("slow", "cut_json", "cut_body", "html", "garbage")
"""What a provider may have charged for."""
FOREVER = 99
NUMBER = re.compile(r"#(\d+)")


def schedule(seed: int, number: int, faulty: float) -> tuple[str, int]:
    """(fault, how often) of a question."""
    rng = Random(f"{seed}/{number}")
    if rng.random() >= faulty:
        return "ok", 0
    kind = rng.choice(AGAIN + FINAL)
    times = rng.choice((1, 1, 2, 2, FOREVER))
    if kind in FINAL:
        times = FOREVER
    return kind, 1 if kind == "slow" else times  # a client's time-out is long: a busy machine must not reach it


@functools.cache
def bomb() -> bytes:
    """1 GiB of spaces as gzip: one block of 1 MiB, 1,024 times. After a full flush a block needs none before it."""
    megabyte = b" " * (1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(megabyte) + packer.flush(zlib.Z_FULL_FLUSH)
    check = functools.reduce(lambda value, _: zlib.crc32(megabyte, value), range(1024), 0)
    header = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    return header + block * 1024 + b"\x03\0" + struct.pack("<II", check, 1 << 30)


class Server:
    """State and handlers."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.begun: dict[int, list[str]] = defaultdict(list)
        self.sent: dict[int, int] = defaultdict(int)
        self.usage = [0, 0]
        self.paid: set[str] = set()
        self.charges = 0
        self.in_flight = self.most_in_flight = 0
        self.bodies: list[Any] = []
        self.times: list[float] = []
        self.orders: list[str] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept alive."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"(?i)content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                if head.startswith("GET"):
                    self.reply(writer, 200, self.get(head.split()[1]))
                elif not await self.chat(head, json.loads(body), writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def get(self, path: str) -> dict[str, Any]:
        if path.endswith("/models"):
            return {"object": "list", "data": [{"id": "good-model", "object": "model"}]}
        return {
            "begun": self.begun, "sent": self.sent, "usage": self.usage, "charges": self.charges,
            "most_in_flight": self.most_in_flight, "in_flight": self.in_flight,
            "bodies": self.bodies[-5:], "times": self.times, "orders": self.orders,
        }  # fmt: skip

    def reply(self, writer: asyncio.StreamWriter, status: int, value: Any, *headers: str, cut: int = 0) -> None:
        """Send; `cut`: so many bytes of the end are left out although content-length counts them."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        kind = "text/html" if data.startswith(b"<") else "application/json"
        lines = [f"HTTP/1.1 {status} x", f"content-type: {kind}", f"content-length: {len(data)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + (data[:-cut] if cut else data))

    async def chat(self, head: str, body: Any, writer: asyncio.StreamWriter) -> bool:
        """Answer one completion; False ends the connection."""
        args = self.args
        self.bodies.append(body)
        self.times.append(asyncio.get_running_loop().time())
        if args.key and f"Bearer {args.key}" not in head:
            self.reply(writer, 401, {"error": {"message": f"Incorrect API key provided: {head}"}})
            return True
        if args.model and body["model"] != args.model:
            self.reply(writer, 404, {"error": {"message": f"The model {body['model']} does not exist"}})
            return True
        text = " ".join(message["content"] for message in body["messages"])
        number = int(NUMBER.search(text)[1])  # type: ignore[index]
        kind, times = schedule(args.seed, number, args.faulty)
        kind = kind if len(self.begun[number]) < times else "ok"
        kind = args.always or kind
        self.begun[number].append(kind)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(args.slow_s if kind == "slow" else args.latency_s)
        self.in_flight -= 1
        if kind == "endless":
            return await self.pour(writer, compressed=False)
        if kind == "bomb":
            return await self.pour(writer, compressed=True)
        # Idempotency keys as the IETF's draft has them: the same request with the same key is charged once.
        token = re.search(r"(?i)idempotency-key: *([\w-]+)", head)
        self.orders.append(token[1] if token else "")
        if kind in PAID and (token is None or token[1] not in self.paid):
            self.charges += 1
            self.paid.add(token[1] if token else "")
        return self.finish(writer, kind, number, text)

    async def pour(self, writer: asyncio.StreamWriter, *, compressed: bool) -> bool:
        """A body without end, or one of 1 GiB in 1 MiB."""
        head = "HTTP/1.1 200 x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
        writer.write(f"{head}{'content-encoding: gzip' + chr(13) + chr(10) if compressed else ''}\r\n".encode())
        data = bomb() if compressed else b" " * (1 << 16)
        try:
            while True:
                writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                await writer.drain()
                if compressed:
                    writer.write(b"0\r\n\r\n")
                    return True
        except ConnectionError:
            return False

    def finish(self, writer: asyncio.StreamWriter, kind: str, number: int, prompt: str) -> bool:
        steps = [{"i": i + (kind == "wrong_indexes"), "tag": "conclude"} for i in range(3)]
        content = "" if kind == "empty" else json.dumps({"steps": steps, "number": number})
        usage = [len(prompt.split()), len(content.split())]
        value = {
            "id": "x", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "finish_reason": "length" if kind == "length" else self.args.finish,
                         "message": json.loads(self.args.message) or {"role": "assistant", "content": content}}],
            "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
        }  # fmt: skip
        if kind in PAID:
            self.sent[number] += 1
            self.usage = [a + b for a, b in zip(self.usage, usage, strict=True)]
        if kind == "429":
            self.reply(writer, 429, {"error": {"message": "slow down"}}, f"Retry-After: {self.args.retry_after}")
        elif kind in ("400", "403", "500"):
            self.reply(writer, int(kind), {"error": {"message": f"no {number} {self.args.key}"}})
        elif kind == "cut_json":
            self.reply(writer, 200, json.dumps(value).encode()[:-20])
        elif kind == "cut_body":
            self.reply(writer, 200, value, cut=20)
        elif kind == "html":
            self.reply(writer, 200, b"<html><body>Bad gateway</body></html>")
        elif kind == "garbage":
            self.reply(writer, 200, {"detail": "what?"})
        elif kind == "closed":
            return False
        else:
            self.reply(writer, 200, value)
        return kind != "cut_body"


async def _main(args: argparse.Namespace) -> None:
    server = await asyncio.start_server(Server(args).handle, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def serving(**options: object) -> Iterator[str]:
    """Run the server in another process; gives its base_url."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    process = subprocess.Popen([sys.executable, str(Path(__file__)), *flags], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def log_of(base_url: str) -> dict[str, Any]:
    """What the server at `base_url` did so far; questions by number."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{base_url}/log", timeout=30) as response:
        log: dict[str, Any] = json.load(response)
    for name in ("begun", "sent"):
        log[name] = {int(number): value for number, value in log[name].items()}
    return log


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faulty", type=float, default=0.0)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--slow-s", type=float, default=12.0)
    parser.add_argument("--retry-after", default="0.05")
    parser.add_argument("--always", default="")
    parser.add_argument("--key", default="")
    parser.add_argument("--finish", default="stop")
    parser.add_argument("--message", default="null")
    parser.add_argument("--model", default="")
    asyncio.run(_main(parser.parse_args()))
