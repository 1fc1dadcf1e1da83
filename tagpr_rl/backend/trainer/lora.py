"""Turn verl's Hugging Face export of a LoRA model into ordinary merged weights.

verl 0.9.1 saves the PEFT module's names as they are (fsdp_checkpoint_manager.py:424-470), which no loader takes for
the model: `base_model.model.<layer>.base_layer.weight` beside `<layer>.lora_A.default.weight` and `lora_B`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tagpr_rl.types import TagprError

SHARD_BYTES = 4 << 30
_PREFIX = "base_model.model."
_ADAPTER = re.compile(r"\.lora_([AB])\.[^.]+\.weight$")


def merge_export(folder: Path, scale: float) -> int:
    """Replace the weights in `folder` by W + scale * B A, in W's dtype, under the model's own names.

    `scale` is alpha / rank. Works tensor by tensor in memory of one shard; the product is computed in fp32. A tied
    output layer is left out. Returns the number of merged layers; TagprError when an adapter has no pair or no layer.
    """
    files = _locations(folder)
    pairs: dict[str, dict[str, str]] = {}
    for name in files:
        match = _ADAPTER.search(name)
        if match:
            pairs.setdefault(name[: match.start()], {})[match.group(1)] = name
    whole = {"A", "B"}
    odd = [name for name, pair in pairs.items() if set(pair) != whole or f"{name}.base_layer.weight" not in files]
    if odd or not pairs:
        raise TagprError(f"{folder}: {'no adapter' if not pairs else f'{odd[0]} lacks a part of its adapter'} to merge")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    def merged() -> Iterator[tuple[str, torch.Tensor]]:
        for name in sorted(files):
            if _ADAPTER.search(name):
                continue
            tensor, plain = _read(files, name), name.removeprefix(_PREFIX)
            if plain == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue
            layer = name.removesuffix(".base_layer.weight")
            if layer in pairs and layer != name:
                down, up = (_read(files, pairs[layer][part]).float() for part in "AB")
                tensor = (tensor.float() + scale * (up @ down)).to(tensor.dtype)
            yield plain.replace(".base_layer.", "."), tensor.contiguous()

    old = set(files.values()) | {folder / "model.safetensors.index.json"}
    temporary = _write(folder, merged())
    for file in old:
        file.unlink(missing_ok=True)
    _publish(folder, temporary)
    return len(pairs)


def _locations(folder: Path) -> dict[str, Path]:
    """Tensor name -> file."""
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as handle:
            places |= dict.fromkeys(handle.keys(), file)
    return places


def _read(files: dict[str, Path], name: str) -> torch.Tensor:
    with safe_open(files[name], "pt") as handle:
        tensor: torch.Tensor = handle.get_tensor(name)
        return tensor


def _write(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> list[tuple[Path, list[str], int]]:
    """Write shards under temporary names; (file, names, bytes) of each."""
    written: list[tuple[Path, list[str], int]] = []
    held: dict[str, torch.Tensor] = {}
    size = 0

    def flush() -> None:
        file = folder / f".merged-{len(written)}"
        save_file(held, file, metadata={"format": "pt"})
        written.append((file, list(held), size))

    for name, tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        if held and size + bytes_ > SHARD_BYTES:
            flush()
            held, size = {}, 0
        held[name], size = tensor, size + bytes_
    flush()
    return written


def _publish(folder: Path, written: list[tuple[Path, list[str], int]]) -> None:
    """Give the shards their names, and an index when there are several."""
    if len(written) == 1:
        written[0][0].rename(folder / "model.safetensors")
        return
    index: dict[str, str] = {}
    for number, (file, names, _) in enumerate(written, start=1):
        name = f"model-{number:05d}-of-{len(written):05d}.safetensors"
        file.rename(folder / name)
        index |= dict.fromkeys(names, name)
    facts = {"metadata": {"total_size": sum(size for *_, size in written)}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
