"""The users' table and the vector cache at 10 million users, with synthetic ids: memory, look-up times, size on disk.

Run: python bench/prmu_scale.py --out DIR [--users 10000000] [--dim 64] [--shards 16] [--lookups 200000]

Writes a table of random rows (prmu.users.table), opens it in a new process and looks up known and unknown ids, one at
a time and 256 at a time, in random order: `first` touches every page for the first time in that process (the system's
page cache is warm, as the table was just written), `again` repeats. The cache (prmu.serving.cache.ArrayCache) is
asked for the
same ids, half of them from 1 % of the users. Prints JSON; the table is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil

from tagpr_rl.files import write_json
from tagpr_rl.prmu.serving.cache import ArrayCache
from tagpr_rl.prmu.users.table import ShardedUsers, write_table

MIB = 1 << 20


def user(number: int) -> str:
    """A synthetic id, as long as LaMP's or a shop's customer number."""
    return f"customer-{number:012d}"


def rss() -> float:
    """Memory of this process in MiB without pages of mapped files, which processes share and the system may drop."""
    memory = psutil.Process().memory_info()
    return float(memory.rss - memory.shared) / MIB


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Microseconds."""
    return {f"p{p:g}_us": float(np.percentile(times, p) * 1e6) for p in (50, 99, 99.9)}


def timed(call: Callable[[Any], object], arguments: Sequence[Any]) -> list[float]:
    times = []
    for argument in arguments:
        started = time.perf_counter()
        call(argument)
        times.append(time.perf_counter() - started)
    return times


def build(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write the table; what it took."""
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    write_table(
        folder,
        lambda: map(user, range(options.users)),
        lambda at: rng.standard_normal((len(at), options.dim), dtype=np.float32),
        shards=options.shards,
        dtype=options.dtype,
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "seconds": time.perf_counter() - started,
        "bytes": size,
        "bytes_per_user": size / options.users,
        "arithmetic_bytes_per_user": 8 + options.dim * np.dtype(options.dtype).itemsize,
        "peak_memory_mib": peak(),
    }


def peak() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def look_up(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of a process that only reads."""
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, options.users, options.lookups).tolist()
    known = [user(number) for number in numbers]
    unknown = [f"stranger-{number}" for number in numbers[:20_000]]
    before = rss()
    started = time.perf_counter()
    table = ShardedUsers(folder)
    opened = time.perf_counter() - started

    def vector(name: str) -> object:
        return table.vectors(np.array(table.rows([name])))

    actual = {
        "open_s": opened,
        "one_first": percentiles(timed(vector, known)),
        "one_again": percentiles(timed(vector, known)),
        "unknown": percentiles(timed(vector, unknown)),
    }
    batches = [known[start : start + 256] for start in range(0, len(known) - 255, 256)]
    many = timed(lambda names: table.vectors(np.array(table.rows(names))), batches)
    actual["batch_of_256"] = percentiles(many)
    actual["mapped_pages_mib"] = psutil.Process().memory_info().shared / MIB
    actual["memory_without_mapped_pages_mib"] = rss() - before
    if not all(table.rows(known[:1000])) or any(table.rows(unknown[:1000])):
        raise SystemExit("the table does not know its own users")
    actual["cache"] = cached(options, numbers)
    return actual


def cached(options: argparse.Namespace, numbers: Sequence[int]) -> dict[str, Any]:
    """The bounded cache under the same ids, half of them from one user in a hundred."""
    row = np.zeros(options.dim, dtype=np.float32)
    bound = options.cache_mb * MIB
    cache: ArrayCache[np.ndarray[Any, Any]] = ArrayCache(options.users, bound)
    few = max(1, options.users // 100)
    keys = [number % few if i % 2 else number for i, number in enumerate(numbers)] * 4
    hits, times, before = 0, [], rss()
    for key in keys:
        started = time.perf_counter()
        hit = cache.get(key)
        if hit is None:
            cache.put(key, row.copy())
        times.append(time.perf_counter() - started)
        hits += hit is not None
    return {
        "bound_mib": options.cache_mb,
        "bytes_mib": cache.nbytes / MIB,
        "process_mib": rss() - before,
        "entries": len(cache),
        "hit_share": hits / len(keys),
        **percentiles(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and scale.json")
    parser.add_argument("--users", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--dtype", default="float16", choices=("float16", "float32"))
    parser.add_argument("--lookups", type=int, default=200_000)
    parser.add_argument("--cache-mb", type=int, default=32)
    parser.add_argument("--read", action="store_true", help="only look up, in a table that is there")
    options = parser.parse_args()
    folder = options.out / "table"
    if options.read:
        print(json.dumps(look_up(folder, options)))
        return
    free, needed = shutil.disk_usage(options.out.parent).free, options.users * (8 + 4 * options.dim)
    if free < 2 * needed:
        raise SystemExit(f"{needed >> 20} MiB of disk are needed at most and {free >> 20} are free")
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        written = build(folder, options)
        command = [sys.executable, str(Path(__file__).resolve()), "--read", *sys.argv[1:]]
        read = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    settings = {name: getattr(options, name) for name in ("users", "dim", "shards", "dtype", "lookups")}
    actual = {**settings, "write": written, "read": read}
    write_json(options.out / "scale.json", actual)
    print(json.dumps(actual, indent=2))


if __name__ == "__main__":
    main()
