"""Rewrites a Hugging Face model folder in another dtype, shard by shard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tagpr_rl.types import TagprError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_INDEX = "model.safetensors.index.json"


def convert(source: Path, target: Path, dtype: str) -> dict[str, int]:
    """Copy the model folder `source` to `target` (new) with floating tensors as `dtype`; counts of what was written.

    fp32 to bf16 rounds to nearest even; bf16 to fp32 is exact. Tensors keep their names and shards, so tied
    weights stay stored once. Raises TagprError if `source` has no safetensors or an unreadable one.
    """
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise TagprError(f"{source} has no *.safetensors to export")
    target.mkdir(parents=True)
    count = size = parameters = 0
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as handle:
                tensors = {name: _cast(handle.get_tensor(name), DTYPES[dtype]) for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise TagprError(f"{shard} cannot be read: {type(error).__name__}: {error}") from None
        count += len(tensors)
        size += sum(tensor.nbytes for tensor in tensors.values())
        parameters += sum(tensor.numel() for tensor in tensors.values())
        save_file(tensors, target / shard.name, metadata={"format": "pt"})
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (_INDEX, "config.json"):
            shutil.copyfile(path, target / path.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config.pop("_name_or_path", None)
    config["dtype"] = dtype
    _write(target / "config.json", config)
    if (source / _INDEX).is_file():
        index = json.loads((source / _INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {**index.get("metadata", {}), "total_size": size}
        _write(target / _INDEX, index)
    return {"tensors": count, "parameters": parameters, "bytes": size}


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
