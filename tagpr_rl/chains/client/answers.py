"""A cache of paid answers in a SQLite file. An answer is committed before it is used, so that a kill loses none.

Only OK replies are answers. One that is cut, empty or filtered is asked again by the next call, because a server may
have been mended meanwhile; what it cost stays counted.

The key of an answer is the model's name and the whole request, not the endpoint's address. Write-ahead logging lets
several processes share the file; each commit is one short transaction. A commit survives `kill -9`. After a power cut
the last commits may be missing (synchronous=NORMAL), but the file is intact.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tagpr_rl.chains.client.body import judge
from tagpr_rl.chains.client.chat import ChatRequest, Reply, ReplyStatus
from tagpr_rl.chains.client.spend import Spend
from tagpr_rl.types import TagprError

APPLICATION_ID = 0x54616750  # "TagP": marks the file as an answer cache
VERSION = 1
LOCK_SECONDS = 60.0
_AT_ONCE = 900  # below SQLite's oldest limit of 999 variables in one statement

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, model TEXT NOT NULL, text TEXT NOT NULL, status TEXT NOT NULL, detail TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS spent (
    purse TEXT PRIMARY KEY, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    unsure_tokens INTEGER NOT NULL, money REAL NOT NULL
);
"""


def question_key(model: str, request: ChatRequest, extra: Mapping[str, Any] | None = None) -> bytes:
    """sha256 of the canonical JSON of model, request and `extra`, the other keys that change the answer."""
    question = {
        "model": model,
        "messages": [dict(message) for message in request.messages],
        "temperature": float(request.temperature),
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "json_schema": request.json_schema,
        "extra": dict(extra or {}),
    }
    text = json.dumps(question, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class AnswerCache:
    """The file. Several threads may use it. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. TagprError if it is no answer cache, is damaged, or cannot be written."""
        self.path = path
        self._lock = threading.Lock()
        with self._named():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                self._prepare_with_lock()
            except BaseException:
                self._db.close()
                raise

    def _prepare_with_lock(self) -> None:
        """Wait for the lock: SQLite itself does not when the journal's mode changes (sqlite3_busy_handler)."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return self._prepare()
            except sqlite3.OperationalError as error:
                if self._db.in_transaction:
                    self._db.rollback()
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _prepare(self) -> None:
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        marks = [self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if tables and marks != [APPLICATION_ID, VERSION]:
            raise TagprError(
                f"{self.path} is a SQLite file, but no answer cache of version {VERSION} (application id and version "
                f"{marks}); name another file, or move this one away"
            )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        if not tables:
            # One transaction: tables without the version would be rejected as no answer cache.
            pragmas = f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION};"
            self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} {pragmas} COMMIT;")

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close; closing twice is fine."""
        self._db.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turns SQLite's errors into a TagprError with the file's name and a remedy."""
        try:
            with self._lock:
                yield
        except sqlite3.OperationalError as error:
            raise TagprError(
                f"answer cache {self.path}: {error}; is the folder writable, is there space, does another process "
                f"hold the file (waited {LOCK_SECONDS:.0f} s)?"
            ) from None
        except sqlite3.DatabaseError as error:
            raise TagprError(
                f"answer cache {self.path} is damaged ({error}); restore a copy, or move it away with its -wal and "
                "-shm files: its answers are then paid for again"
            ) from None
        except OSError as error:
            raise TagprError(f"answer cache {self.path}: {error.strerror or error}; name a writable folder") from None

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Reply]:
        """Key -> stored reply, with `cached` set, for the keys that have one of use."""
        with self._named():
            return self._read(keys)

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, Reply]:
        replies: dict[bytes, Reply] = {}
        columns = "key, text, status, detail, prompt_tokens, completion_tokens, crc"
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            placeholders = ",".join("?" * len(part))
            for key, text, status, detail, prompt, completion, crc in self._db.execute(
                f"SELECT {columns} FROM answers WHERE key IN ({placeholders})", part
            ):
                if crc != _crc(text, status, prompt, completion):
                    raise sqlite3.DatabaseError(f"the answer {key.hex()} differs from its checksum")
                if status == ReplyStatus.OK and judge(text, "stop")[0] is ReplyStatus.OK:
                    replies[key] = Reply(text, ReplyStatus.OK, prompt, completion, cached=True, detail=detail)
        return replies

    def put(
        self, model: str, answers: Sequence[tuple[bytes, Reply]], account: str = "", spend: Spend | None = None
    ) -> None:
        """Commit answers and what they cost in one transaction.

        An answer that is already stored does not change, unless it is of no use (files of earlier releases hold such
        replies). Replies that are not OK are not stored. `account`: the name under which `spend` is added up.
        """
        rows = {
            key: (key, model, r.text, r.status.value, r.detail, r.prompt_tokens, r.completion_tokens,
                  _crc(r.text, r.status.value, r.prompt_tokens, r.completion_tokens))
            for key, r in answers if r.status is ReplyStatus.OK
        }  # fmt: skip
        with self._named():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                known = self._read(list(rows))
                fresh = [row for key, row in rows.items() if key not in known]
                self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", fresh)
                if spend is not None:
                    self._db.execute(
                        "INSERT INTO spent VALUES (?, ?, ?, ?, ?) ON CONFLICT (purse) DO UPDATE SET "
                        "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
                        "completion_tokens = completion_tokens + excluded.completion_tokens, "
                        "unsure_tokens = unsure_tokens + excluded.unsure_tokens, money = money + excluded.money",
                        (account, spend.prompt_tokens, spend.completion_tokens, spend.unsure_tokens, spend.money),
                    )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def spent(self, account: str) -> Spend:
        """The sum of what all processes have spent under the name `account`."""
        with self._named():
            row = self._db.execute(
                "SELECT prompt_tokens, completion_tokens, unsure_tokens, money FROM spent WHERE purse = ?", (account,)
            ).fetchone()
        return Spend(*row) if row else Spend()

    def __len__(self) -> int:
        with self._named():
            return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])


def _crc(text: str, status: str, prompt: int, completion: int) -> int:
    return zlib.crc32(f"{status}/{prompt}/{completion}/{text}".encode("utf-8", "surrogatepass"))


class Questions:
    """The requests of one call. Equal requests are one question, and the cache answers the known ones."""

    def __init__(
        self, model: str, requests: Sequence[ChatRequest], cache: AnswerCache, extra: Mapping[str, Any] | None = None
    ) -> None:
        self._keys = [question_key(model, request, extra) for request in requests]
        by_key = dict(zip(self._keys, requests, strict=True))
        self._known = cache.get_many(list(by_key))
        self.open = {key: request for key, request in by_key.items() if key not in self._known}
        """Key -> request of the questions without an answer, in order."""

    def replies(self, answers: Mapping[bytes, Reply]) -> list[Reply]:
        """One reply per request. If several requests are one question, the first is counted as the paid one."""
        replies: list[Reply] = []
        paid: set[bytes] = set()
        for key in self._keys:
            reply = self._known.get(key) or answers[key]
            if key in paid and reply.status not in (ReplyStatus.FAILED, ReplyStatus.BUDGET) and not reply.cached:
                reply = Reply(
                    reply.text, reply.status, reply.prompt_tokens, reply.completion_tokens, True, reply.detail
                )
            paid.add(key)
            replies.append(reply)
        return replies
