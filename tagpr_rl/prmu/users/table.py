"""The identity rows o_u of millions of users: hash-sharded safetensors files, read through memory maps. No torch.

A table is a folder: `index.json` and shards `00000.safetensors`, ... A table stores a 64-bit hash of each id,
not the id. A shard holds the sorted hashes of its users and, in the same order, their rows. So a look-up is one hash,
one binary search and one row, and processes on a node share the pages that they read.

Sizes for N users and rows of D numbers of b bytes: index 8 N, rows b N D. None of it must be in memory.
N = 10 million: the index is 80 MB. D = 2048 (twice the hidden size of a backbone with 1024) in float16 is
41 GB of rows, in 64 shards of 0.64 GB; D = 128 is 2.6 GB. A Python dict of 10 million ids takes about 1.4 GB in
every process, and a trainable table with its gradient and Adam states 16 N D bytes = 328 GB at D = 2048; so training
holds the rows of its own users, and `shard_users` moves them here afterwards.
Two of N ids share a hash with probability N^2 / 2^65 (3e-6 for 10 million): writing detects it and takes another salt.
An unknown id is taken for a known one with probability N / 2^64 (5e-13).
A scorer's cache of profile states does not grow with N: it is bounded in bytes (prmu.serving.cache.ArrayCache).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from tagpr_rl.files import replacing, write_json
from tagpr_rl.types import TagprError

FORMAT = "tagpr_rl.prmu.users/1"
INDEX = "index.json"
DTYPES = {"float16": np.float16, "float32": np.float32}
SALTS = 4
"""Salts that writing tries; one more is needed once in 300,000 tables of 10 million users."""

Array = np.ndarray[Any, Any]


def hash_ids(ids: Iterable[str], salt: int = 0) -> Array:
    """A 64-bit BLAKE2b hash of each id, uint64: the same on every machine and in every process."""
    mark = salt.to_bytes(8, "little")
    digests = (
        hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8, salt=mark).digest() for user in ids
    )
    parts = []
    while part := b"".join(islice(digests, 100_000)):  # millions of small objects would take ten times the memory
        parts.append(part)
    return np.frombuffer(b"".join(parts), dtype="<u8")


def shard_of(hashes: Array, shards: int) -> Array:
    """The shard `[n]` int64 of each hash: equal ranges of its upper 32 bits."""
    shard: Array = ((hashes >> np.uint64(32)) * np.uint64(shards)) >> np.uint64(32)
    return shard.astype(np.int64)


def write_table(
    folder: Path,
    ids: Callable[[], Iterable[str]],
    rows: Callable[[Array], Array],
    *,
    shards: int = 16,
    dtype: str = "float16",
) -> None:
    """Write a table of distinct ids. One shard is in memory at a time.

    Args:
        folder: the table's folder. An earlier table in it is replaced; the index is written last.
        ids: returns all ids, in the same order at every call.
        rows: returns the rows `[n, D]` of the positions `[n]` int64 in that order.

    Raises:
        TagprError: an id is repeated, a row is not finite in `dtype`, or a setting is impossible.
    """
    if shards < 1 or dtype not in DTYPES:
        raise TagprError(f"users: shards is {shards}, dtype {dtype!r}; use at least 1, and float16 or float32")
    hashes, salt = _distinct_hashes(ids)
    place = shard_of(hashes, shards)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # a table without its index is no table
    counts, dim = [], 0
    for shard in range(shards):
        members = np.flatnonzero(place == shard)
        members = members[np.argsort(hashes[members])]
        values = np.asarray(rows(members))
        dim = values.shape[1]
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values.astype(DTYPES[dtype]))
        if not np.isfinite(stored).all():
            bad = int(members[np.flatnonzero(~np.isfinite(stored).all(axis=1))[0]])
            raise TagprError(f"users: row {bad} is not finite in {dtype}; use float32, or train PRMU again")
        with replacing(folder / _name(shard)) as temp:
            save_file({"hash": hashes[members], "rows": stored}, temp)
        counts.append(len(members))
    meta = {"format": FORMAT, "salt": salt, "dim": dim, "dtype": dtype, "counts": counts}
    write_json(folder / INDEX, meta)


def _distinct_hashes(ids: Callable[[], Iterable[str]]) -> tuple[Array, int]:
    for salt in range(SALTS):
        hashes = hash_ids(ids(), salt)
        values, times = np.unique(hashes, return_counts=True)
        if len(values) == len(hashes):
            return hashes, salt
        twice = set(values[times > 1].tolist())
        ids_of: dict[int, set[str]] = defaultdict(set)
        for user, value in zip(ids(), hashes.tolist(), strict=True):
            if value in twice and user in ids_of[value]:
                raise TagprError(f"users: the id {user!r} is repeated; give each user one row")
            if value in twice:
                ids_of[value].add(user)
    raise TagprError(f"users: ids share a hash under each of {SALTS} salts")


def _name(shard: int) -> str:
    return f"{shard:05d}.safetensors"


class ShardedUsers:
    """Reads a table that `write_table` wrote: id -> row number (1..N; 0 = unknown) -> row. Every id is valid."""

    def __init__(self, folder: Path) -> None:
        """Open the files of `folder` without reading rows. TagprError if they are not a table."""
        meta = _read_index(folder)
        self.folder, self.salt, self.dim = folder, int(meta["salt"]), int(meta["dim"])
        self.dtype = str(meta["dtype"])
        self._start = np.concatenate([[0], np.cumsum(meta["counts"], dtype=np.int64)])
        parts = [_mapped(folder / _name(i), count, self.dim, self.dtype) for i, count in enumerate(meta["counts"])]
        self._hash = [hashes for hashes, _ in parts]
        self._rows = [rows for _, rows in parts]

    def __len__(self) -> int:
        return int(self._start[-1])

    def rows(self, users: Sequence[str]) -> list[int]:
        """Row number of each user; 0 = unknown."""
        hashes = hash_ids(users, self.salt)
        numbers = np.zeros(len(users), dtype=np.int64)
        shards = shard_of(hashes, len(self._hash))
        for shard in set(shards.tolist()):
            at, known = np.flatnonzero(shards == shard), self._hash[shard]
            if len(known):
                place = np.minimum(np.searchsorted(known, hashes[at]), len(known) - 1)
                present = known[place] == hashes[at]
                numbers[at[present]] = 1 + self._start[shard] + place[present]
        return [int(row) for row in numbers]

    def vectors(self, rows: Array) -> Array:
        """The rows `[n, D]` float32 of the row numbers `[n]`; zeros for 0. TagprError on a number out of range."""
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() > len(self)):
            raise TagprError(f"{self.folder}: row {int(wanted.max())} of {len(self)} users")
        out = np.zeros((len(wanted), self.dim), dtype=np.float32)
        known = np.flatnonzero(wanted)
        shards = np.searchsorted(self._start, wanted[known] - 1, side="right") - 1
        for shard in np.unique(shards).tolist():
            at = known[shards == shard]
            out[at] = self._rows[shard][wanted[at] - 1 - self._start[shard]]
        return out


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise TagprError(f"{path}: not a table of users ({error}); write it again") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or meta.get("dtype") not in DTYPES:
        raise TagprError(f"{path}: format is not {FORMAT!r}; write the table again")
    return meta


def _mapped(path: Path, count: int, dim: int, dtype: str) -> tuple[Array, Array]:
    """Memory maps of a shard's hashes `[n]` and rows `[n, D]`.

    safetensors copies one slice at a time; a memory map gives any rows. Layout of a safetensors file: 8 bytes with the
    header's length, the header in JSON with each tensor's offsets, the data.
    """
    try:
        with safe_open(path, framework="np") as shard:  # checks header and file size
            shapes = {name: tuple(shard.get_slice(name).get_shape()) for name in shard.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise TagprError(f"{path}: damaged or missing ({error}); write the table again") from error
    if shapes != {"hash": (count,), "rows": (count, dim)}:
        raise TagprError(f"{path}: holds {shapes}, the index says {count} users of {dim}; write the table again")
    if not count:
        return np.zeros(0, np.uint64), np.zeros((0, dim), DTYPES[dtype])
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    types: dict[str, Any] = {"hash": np.uint64, "rows": DTYPES[dtype]}
    maps = [
        np.memmap(path, types[name], "r", 8 + length + header[name]["data_offsets"][0], shapes[name])
        for name in ("hash", "rows")
    ]
    return maps[0], maps[1]


def shard_users(folder: Path, *, shards: int = 16, dtype: str = "float16") -> None:
    """Move the identity rows of the PRMU in `folder` into the table `folder/users`.

    `model.safetensors` loses its identity tensor and `users.json` its ids; `PrmuModel.from_pretrained` then reads
    the table. A PRMU without identity rows does not change.
    """
    weights = load_file(folder / "model.safetensors")
    ids = json.loads((folder / "users.json").read_text(encoding="utf-8"))
    identity = weights.pop("users.identity.weight", None)
    if identity is None:
        return
    write_table(folder / "users", lambda: ids, lambda at: identity[at + 1], shards=shards, dtype=dtype)
    with replacing(folder / "model.safetensors") as temp:
        save_file(weights, temp)
    write_json(folder / "users.json", [])
