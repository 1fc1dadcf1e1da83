"""Text embeddings on disk: computed once per encoder and text, then read by every stage without torch.

`<folder>/<shard>.npy` holds vectors [N, H] (float32), `<folder>/<shard>.keys.npy` the SHA-256 of each text [N, 32].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tagpr_rl.files import replacing
from tagpr_rl.types import TagprError

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
"""Texts [N] -> vectors [N, H]."""


class EmbeddingStore:
    """Vectors by text, for one encoder. `encode` makes those that are missing."""

    def __init__(self, folder: Path, encode: Encode | None = None) -> None:
        self.folder, self.encode = Path(folder), encode
        self.encoded = 0
        """Texts that this object had to encode."""
        self._row: dict[bytes, Vectors] = {}
        for path in sorted(self.folder.glob("*.keys.npy")):
            self._load(path)

    def similarity(self, texts: Sequence[str], query: str) -> list[float]:
        """Dot product of each text's vector with the query's."""
        if not texts:
            return []
        vectors = self.get([*texts, query])
        scores: list[float] = (vectors[:-1] @ vectors[-1]).tolist()
        return scores

    def get(self, texts: Sequence[str]) -> Vectors:
        """Vectors [N, H] of N texts, encoding and storing those that are missing."""
        self.prepare(texts)
        return np.stack([self._row[_key(text)] for text in texts])

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode and store what is missing of `texts`, as one shard."""
        missing = list({_key(text): text for text in texts if _key(text) not in self._row}.values())
        if not missing:
            return
        if self.encode is None:
            raise TagprError(f"{self.folder}: {len(missing)} texts have no embedding there, first {missing[0][:60]!r}")
        vectors = np.ascontiguousarray(self.encode(missing), dtype=np.float32)
        keys = [_key(text) for text in missing]
        if not np.isfinite(vectors).all():
            at = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise TagprError(f"the encoder gives a vector that is not finite for the text {missing[at][:60]!r}")
        self.encoded += len(missing)
        shard = hashlib.sha256(b"".join(sorted(keys))).hexdigest()[:24]
        with replacing(self.folder / f"{shard}.npy") as temp, temp.open("wb") as handle:
            np.save(handle, vectors, allow_pickle=False)
        # The keys come second: a shard without keys is not seen.
        with replacing(self.folder / f"{shard}.keys.npy") as temp, temp.open("wb") as handle:
            np.save(handle, np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 32), allow_pickle=False)
        self._row.update(zip(keys, vectors, strict=True))

    def _load(self, keys_path: Path) -> None:
        vectors_path = keys_path.with_name(keys_path.name.replace(".keys.npy", ".npy"))
        try:
            keys, vectors = np.load(keys_path, allow_pickle=False), np.load(vectors_path, allow_pickle=False)
            if keys.shape != (len(vectors), 32) or vectors.ndim != 2:
                raise ValueError(f"shapes {keys.shape} and {vectors.shape}")
        except (OSError, ValueError, EOFError) as error:
            raise TagprError(f"{vectors_path}: damaged embeddings ({error}); delete {self.folder}") from None
        self._row.update(zip((row.tobytes() for row in keys), vectors, strict=True))


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
