"""The chat client's own time per request, and the answer cache's reading speed.

A null server in another process answers each request at once, so that ideal wall time is zero and all of the wall time
is overhead: `wall / requests`. It also holds what other work on the machine takes away, which is measured and named
(`without a core`), as is the CPU time of the client's process. Side by side, in one run and in turns: the same requests
through the bare `openai` library in its plain use, through its fastest use (the aiohttp transport and the unparsed
response), and through our client with cache, ledger and progress.
Bars: at most 1 ms of wall time a request at concurrency 64; 50,000 cached answers read in at most 5 s.

    python bench/chains.py [--requests 3000] [--cached 50000] [--json chains.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI, DefaultAioHttpClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tagpr_rl.chains.client.answers import AnswerCache, question_key
from tagpr_rl.chains.client.chat import ChatRequest, Reply, to_body
from tagpr_rl.chains.client.openai_client import OpenAIGenerator
from tagpr_rl.config.endpoints import EndpointBlock

CONCURRENCY = 64
WORDS = "the user wrote a title about a thing and prefers another one over it so the answer follows from the history "
TEXT = "\n".join(f"step {i}: {WORDS}" for i in range(6)) + "\nAnswer: [1]"


def chats(n: int, first: int) -> list[ChatRequest]:
    """Requests of some 2,000 characters, all different."""
    system = {"role": "system", "content": WORDS * 5}
    return [ChatRequest((system, {"role": "user", "content": f"{WORDS * 14} #{i}"})) for i in range(first, first + n)]


class NullServer(asyncio.Protocol):
    """Answers each POST at once with one fixed completion, and reads no more of it than its length."""

    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": TEXT}}  # noqa: RUF012
    usage = {"prompt_tokens": 400, "completion_tokens": 150, "total_tokens": 550}  # noqa: RUF012
    body = json.dumps(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [message], "usage": usage}
    ).encode()
    answer = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    def connection_made(self, transport: Any) -> None:
        self.transport, self.seen = transport, b""

    def data_received(self, data: bytes) -> None:
        self.seen += data
        while (end := self.seen.find(b"\r\n\r\n")) >= 0:
            head = self.seen[:end].lower()
            length = int(head[head.index(b"content-length:") + 15 :].split(b"\r\n")[0])
            if len(self.seen) < end + 4 + length:
                return
            self.seen = self.seen[end + 4 + length :]
            self.transport.write(self.answer)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(NullServer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def bare(url: str, requests: list[ChatRequest], fast: bool) -> None:
    """64 loops over the library alone."""
    limits = httpx2.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    http = (DefaultAioHttpClient if fast else httpx2.AsyncClient)(limits=limits, timeout=60)
    bodies = iter([to_body("m", request, {}) for request in requests])
    async with AsyncOpenAI(base_url=url, api_key="-", max_retries=0, http_client=http) as client:

        async def loop() -> None:
            for body in bodies:
                if fast:
                    response = await client.post("/chat/completions", cast_to=httpx2.Response, body=body)
                    json.loads(response.content)["choices"][0]["message"]["content"]
                else:
                    await client.chat.completions.create(**body)

        await asyncio.gather(*(loop() for _ in range(CONCURRENCY)))


def queued() -> float:
    """Seconds that this thread was ready to run and had no core (Linux, /proc/<pid>/schedstat)."""
    return int(Path("/proc/self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9


def timed(work: Callable[[], Any], n: int) -> dict[str, float]:
    """Milliseconds per request."""
    wall, cpu, queue = time.perf_counter(), time.process_time(), queued()
    work()
    spans = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "queued": queued() - queue}
    return {f"{name}_ms": span / n * 1e3 for name, span in spans.items()}


def overhead(url: str, folder: Path, n: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians over the rounds of three ways to ask, in turns."""
    block = EndpointBlock(kind="openai", base_url=url, model="m", concurrency=CONCURRENCY)
    actual: dict[str, list[dict[str, float]]] = {"openai, plain use": [], "openai, fastest use": [], "ours": []}
    with AnswerCache(folder / "asked.sqlite") as cache:
        own = OpenAIGenerator(block, cache, account="bench")
        for number in range(-1, rounds):  # one round to warm up
            requests = chats(n if number >= 0 else 200, number * n)
            results = {
                "openai, plain use": timed(lambda r=requests: asyncio.run(bare(url, r, fast=False)), len(requests)),
                "openai, fastest use": timed(lambda r=requests: asyncio.run(bare(url, r, fast=True)), len(requests)),
                "ours": timed(lambda r=requests: own.generate(r), len(requests)),
            }
            if number >= 0:
                for name, result in results.items():
                    actual[name].append(result)
        assert len(cache) == rounds * n + 200, "every answer is in the cache"
    return {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in actual.items()
    }


def reading(folder: Path, n: int) -> dict[str, float]:
    """Seconds to answer n requests from the cache's file, from opening it to the last reply."""
    requests = chats(n, 0)
    block = EndpointBlock(kind="openai", base_url="http://127.0.0.1:9/v1", model="m")
    extra = {"base_url": block.base_url}
    with AnswerCache(folder / "full.sqlite") as cache:
        start = time.perf_counter()
        replies = [Reply(f"{TEXT} {i}", prompt_tokens=1) for i in range(n)]
        cache.put("m", [(question_key("m", r, extra), reply) for r, reply in zip(requests, replies, strict=True)])
        written = time.perf_counter() - start
    start = time.perf_counter()
    with AnswerCache(folder / "full.sqlite") as cache:
        replies = OpenAIGenerator(block, cache, account="bench").generate(requests)
    seconds = time.perf_counter() - start
    assert all(reply.cached and reply.text == f"{TEXT} {i}" for i, reply in enumerate(replies))
    return {"answers": n, "read_s": seconds, "write_s": written}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cached", type=int, default=50_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve())
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            times = overhead(url, Path(folder), args.requests, args.rounds)
        finally:
            server.kill()
            server.wait()
        cached = reading(Path(folder), args.cached)
    own = times["ours"]
    for name, row in times.items():
        ratio = f"{own['cpu_ms'] / row['cpu_ms']:.2f}"
        print(
            f"{name:20} CPU {row['cpu_ms']:6.3f} ms, wall {row['wall_ms']:6.3f} ms (of it without a core "
            f"{row['queued_ms']:.3f} ms) a request; CPU of this project's client / of this row: {ratio}"
        )
    print(
        f"cache: {cached['answers']:,} answers read in {cached['read_s']:.2f} s (written in {cached['write_s']:.2f} s)"
    )
    passed = {
        "wall <= 1 ms": own["wall_ms"] <= 1,
        "read <= 5 s": cached["read_s"] <= 5,
    }
    print("; ".join(f"{bar}: {'met' if ok else 'MISSED'}" for bar, ok in passed.items()))
    if args.json:
        args.json.write_text(json.dumps({"times": times, "cache": cached, "passed": passed}, indent=1) + "\n")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
