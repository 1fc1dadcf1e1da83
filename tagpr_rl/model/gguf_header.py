"""What a GGUF file says of itself, without torch and without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagpr_rl.types import TagprError


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself."""

    path: Path
    fields: dict[str, Any]

    def get(self, key: str) -> Any:
        """The value of `key`; TagprError if the file has none."""
        if key not in self.fields:
            raise TagprError(f"{self.path}: this GGUF file has no field {key}; its tokenizer cannot be rebuilt")
        return self.fields[key]

    def config(self) -> dict[str, Any]:
        """The keys of a Hugging Face config.json that follow from the file, without those that it does not give."""
        kind = str(self.get("general.architecture"))
        keys = {
            "num_attention_heads": f"{kind}.attention.head_count",
            "num_key_value_heads": f"{kind}.attention.head_count_kv",
            "max_position_embeddings": f"{kind}.context_length",
        }
        values = {name: self.fields[key] for name, key in keys.items() if key in self.fields}
        return {"model_type": kind, "architectures": [f"{kind.capitalize()}ForCausalLM"], **values}


def read_header(path: Path) -> Header:
    """The fields of a GGUF file. TagprError if it is none or is cut off."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        ends = [int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors]
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        raise TagprError(f"{path}: not a whole GGUF file ({error}); fetch it again") from None
    size = path.stat().st_size
    if not ends or max(ends) > size:
        raise TagprError(f"{path}: the file has {size} bytes, its tensors need {max(ends, default=0)}; fetch it again")
    return Header(path, fields)
