"""Weights on disk without loading them: the headers of safetensors files, and NaN by a sample of each tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tagpr_rl.types import TagprError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MOST_HEADER_BYTES = 100_000_000
"""The format's own limit."""
MOST_SAMPLED_BYTES = 384 << 20
"""Read in all: smaller models whole, of larger ones the beginning, middle and end of each tensor."""
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0 << 48),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""Number format -> (bits as numpy reads them, the exponent's bits: all set in NaN and infinities)."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    """First byte in the file."""
    end: int

    @property
    def count(self) -> int:
        """Numbers in it."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def read_json_file(path: Path) -> dict[str, Any]:
    """A JSON object. TagprError naming the file for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TagprError(f"{path}: cannot be read ({error}); copy or download it again") from None
    if not isinstance(value, dict):
        raise TagprError(f"{path}: not an object of keys; copy or download it again")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the folder's weights. TagprError if there are none, or one of them is missing."""
    index = folder / INDEX
    if index.is_file():
        mapping = read_json_file(index).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise TagprError(f"{index}: has no weight_map; download the model again")
        files = sorted({folder / str(name) for name in mapping.values()})
        if missing := [path.name for path in files if not path.is_file()]:
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise TagprError(f"{folder}: {index.name} names {shown}, which is not there; download the model again")
        return files
    if (folder / SINGLE).is_file():  # the only file that transformers reads then, whatever lies beside it
        return [folder / SINGLE]
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "adapter_config.json").is_file():
        raise TagprError(f"{folder}: holds an adapter (LoRA), not a model; merge it into its base model first")
    if files:
        return files
    others = [path.name for pattern in ("*.bin", "*.gguf", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
    what = f"only {others[0]}" if others else "no weights"
    raise TagprError(f"{folder}: holds {what}; it needs model.safetensors, as save_pretrained writes it")


def tensors(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file, from its header. TagprError for a damaged or cut file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or not 0 < length <= min(MOST_HEADER_BYTES, size - 8):
                raise TagprError(f"{path}: {_pointer(path) or 'not a safetensors file'}; download it again")
            header = json.loads(handle.read(length))
        found = [_tensor(path, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TagprError(f"{path}: its header is damaged ({type(error).__name__}); download it again") from None
    end = max((tensor.end for tensor in found), default=8 + length)
    if end != size:
        what = f"is cut: {size:,} of {end:,} bytes are there" if end > size else f"has {size - end:,} bytes too many"
        raise TagprError(f"{path}: the file {what}; download it again")
    for tensor in found:
        width = _WIDTHS.get(tensor.dtype)
        if width is not None and tensor.end - tensor.start != width * tensor.count:
            raise TagprError(f"{path}: the header's shape and bytes of {tensor.name} differ; download it again")
    return found


def _tensor(path: Path, name: str, entry: Mapping[str, Any], base: int) -> Tensor:
    start, end = (base + int(offset) for offset in entry["data_offsets"])
    if not base <= start <= end:
        raise ValueError("offsets")
    return Tensor(name, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), path, start, end)


def _pointer(path: Path) -> str:
    """What a small text file is that stands for the weights: a Git LFS pointer."""
    with path.open("rb") as handle:
        return "a Git LFS pointer, not the weights (git lfs pull)" if b"git-lfs" in handle.read(200) else ""


def not_finite(found: list[Tensor]) -> Iterator[str]:
    """Names of the tensors with a NaN or an infinity in what is read of them. The first three."""
    whole = sum(tensor.end - tensor.start for tensor in found) <= MOST_SAMPLED_BYTES
    each = MOST_SAMPLED_BYTES if whole else max(64, MOST_SAMPLED_BYTES // (3 * len(found)))
    hits = 0
    for tensor in found:
        if tensor.dtype in _EXPONENTS and hits < 3 and _has_nan(tensor, each):
            hits += 1
            yield tensor.name


def blank(found: list[Tensor]) -> Iterator[str]:
    """Names of matrices at the end of a file whose last numbers are all 0, as a download that was cut leaves them."""
    for path in sorted({tensor.path for tensor in found}):
        matrices = [tensor for tensor in found if tensor.path == path and len(tensor.shape) > 1 and tensor.count]
        if not matrices:
            continue
        last = max(matrices, key=lambda tensor: tensor.end)
        with path.open("rb") as handle:
            handle.seek(max(last.start, last.end - (1 << 20)))
            if not any(handle.read(last.end - handle.tell())):
                yield last.name


def _has_nan(tensor: Tensor, each: int) -> bool:
    kind, exponent = _EXPONENTS[tensor.dtype]
    width, size = _WIDTHS[tensor.dtype], tensor.end - tensor.start
    each -= each % width
    middle = (size // 2) - (size // 2) % width
    offsets = {0, middle, max(0, size - each)} if size > 3 * each else {0}
    with tensor.path.open("rb") as handle:
        for offset in offsets:
            handle.seek(tensor.start + offset)
            read = handle.read(min(each if size > 3 * each else size, size - offset))
            bits = np.frombuffer(read[: len(read) - len(read) % width], dtype=kind)
            if bool(((bits & exponent) == exponent).any()):
                return True
    return False
