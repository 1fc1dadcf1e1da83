"""Fetches LaMP's official files: resumed, checked for size and content, and named only when they are whole.

Addresses as on the benchmark's download page: `<base>/LaMP_3/train/train_questions.json`, the time split under
`<base>/time/`, the movies of LaMP_2 under `LaMP_2/new/` (`LaMP_2/` itself is the older news task, LaMP_2N).
That server answers a wrong address with status 200 and a web page, so every file must also parse as the task's file.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.config.environment import go_direct, proxy_hint
from tagpr_rl.data.lamp import outputs_path, questions_path, read_predictions, stream_lamp
from tagpr_rl.data.tasks import task_name
from tagpr_rl.files import sync_folder, write_text
from tagpr_rl.types import TagprError

BASE = "https://ciir.cs.umass.edu/downloads/LaMP"
SETTINGS = ("user", "time")
TRIES = 5
BLOCK = 1 << 16
TIMEOUT_S = 60.0

_FOLDERS = {"LaMP_2": "LaMP_2/new", "LaMP_2N": "LaMP_2"}


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file that is in place."""

    path: Path
    url: str
    n_bytes: int
    n_records: int
    how: str
    """downloaded, resumed, or already there"""


def addresses(folder: Path, task: str, split: str, setting: str, base: str = BASE) -> list[tuple[str, Path]]:
    """(URL, file) of one task and split; the test split's golds are withheld. TagprError for LaMP_6."""
    name = task_name(task)
    if name == "LaMP_6":
        raise TagprError(
            "LaMP_6 is made from the Avocado corpus, which is licensed by the LDC; build it with LaMP's own script "
            "(data/avocado/create_avocado_dataset.py) and put its files into <folder>/LaMP_6"
        )
    where = "/".join([base.rstrip("/"), *(["time"] if setting == "time" else []), _FOLDERS.get(name, name), split])
    pairs = [(f"{where}/{split}_questions.json", questions_path(folder, name, split))]
    if split != "test":
        pairs.append((f"{where}/{split}_outputs.json", outputs_path(folder, name, split)))
    return pairs


def fetch(url: str, path: Path, task: str, split: str, *, say: Callable[[str], None], pause_s: float = 2.0) -> Fetched:
    """Download one file to `path`. A whole file that exists is kept; a part of it is continued.

    There are up to `TRIES` attempts, each from where the last one broke off, with a pause of `pause_s` that doubles
    each time. Raises TagprError with the address if there is no such file, or if a web page, a wrong size or another
    task's text arrives. `path` then does not exist; the part of a cut transfer stays beside it as `.<name>.part`.
    """
    if path.is_file():
        return Fetched(path, url, path.stat().st_size, _count(path, task, split), "already there")
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.is_file() and part.stat().st_size > 0
    for attempt in range(1, TRIES + 1):
        try:
            _transfer(url, part)
            break
        except _Interrupted as fault:
            if attempt == TRIES:
                raise TagprError(
                    f"{url}: {fault}; gave up after {TRIES} attempts. The same command goes on where it stopped"
                ) from None
            resumed = resumed or (part.is_file() and part.stat().st_size > 0)
            say(f"{url}: {fault}; attempt {attempt + 1} of {TRIES}")
            time.sleep(pause_s * 2 ** (attempt - 1))
    try:
        n_records = _count(part, task, split)
    except TagprError as fault:
        _forget(part)
        raise TagprError(f"{url}: what the server sent is not {task}'s {split} file: {fault}") from None
    size = part.stat().st_size
    part.replace(path)
    _forget(part)
    sync_folder(path.parent)
    return Fetched(path, url, size, n_records, "resumed" if resumed else "downloaded")


class _Interrupted(Exception):
    """A transfer that broke off; another attempt may succeed."""


def _transfer(url: str, part: Path) -> None:
    """One request; appends to `part` if the server continues the same file, else starts it again."""
    go_direct(url)
    mark = part.with_suffix(".mark")  # what the part belongs to: its address and the server's version of it
    have = part.stat().st_size if part.is_file() else 0
    origin = json.loads(mark.read_text(encoding="utf-8")) if have and mark.is_file() else {}
    headers = {"Accept-Encoding": "identity", "User-Agent": "tagpr_rl"}
    if have and origin.get("url") == url:
        headers["Range"] = f"bytes={have}-"
        if origin.get("version"):
            headers["If-Range"] = origin["version"]  # a changed file comes whole
    try:
        opener = urllib.request.build_opener()  # urlopen keeps the proxies of its first call
        with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as response:
            _receive(url, response, part, mark, have)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is not a beginning of this file
            _forget(part)
            raise _Interrupted("the part on disk is longer than the file, starting again") from None
        if error.code == 429 or error.code >= 500:
            raise _Interrupted(f"the server answers {error.code} {error.reason}{proxy_hint(url)}") from None
        raise TagprError(
            f"{url}: the server answers {error.code} {error.reason}; check task, split and setting{proxy_hint(url)}"
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error
        raise _Interrupted(f"the connection failed ({type(error).__name__}: {reason}){proxy_hint(url)}") from None


def _receive(url: str, response: http.client.HTTPResponse, part: Path, mark: Path, have: int) -> None:
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        _forget(part)
        raise TagprError(
            f"{url}: the server answers {response.status} with a web page ({kind}), not with data; the address is "
            f"wrong{proxy_hint(url)}"
        )
    start = 0
    if response.status == 206:
        start = _range_start(response.headers.get("Content-Range", ""))
        if start != have:
            _forget(part)
            raise _Interrupted(f"the server continued at byte {start} instead of {have}; starting again")
    length = response.headers.get("Content-Length")
    total = start + int(length) if length is not None and length.isdigit() else None
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    # A weak tag must not stand in If-Range (RFC 9110, 13.1.5).
    strong = version if version and not version.startswith("W/") else None
    write_text(mark, json.dumps({"url": url, "version": strong}))
    with part.open("ab" if start else "wb") as handle:
        while block := response.read(BLOCK):
            handle.write(block)
    size = part.stat().st_size
    if total is not None and size != total:
        if size > total:
            _forget(part)
        raise _Interrupted(f"{size} of {total} bytes arrived")


def _range_start(header: str) -> int:
    """The first byte of `bytes 10-99/100`; -1 for anything else."""
    unit, _, rest = header.partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else -1


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_suffix(".mark").unlink(missing_ok=True)


def _count(path: Path, task: str, split: str) -> int:
    """How many records the file has; TagprError unless every one is of the task's shape."""
    if "_outputs.json" in path.name:
        return len(read_predictions(path, task))
    return sum(1 for _ in stream_lamp(path, None, split, task=task))
