"""A model's folder: the one named, or a download of a hub name into the Hugging Face cache."""

from __future__ import annotations

from pathlib import Path

from tagpr_rl.files import is_hub_name
from tagpr_rl.types import TagprError

_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")


def model_folder(path: Path | str, key: str) -> Path:
    """The folder of `path`, which is a folder or a hub name such as Qwen/Qwen3-8B. TagprError when there is none.

    `key` is the recipe's key, for messages. A hub name is downloaded once; HF_HUB_OFFLINE=1 uses the cache alone.
    """
    if Path(path).is_dir():
        return Path(path)
    if not is_hub_name(path):
        if str(path).endswith(".gguf"):
            raise TagprError(f"{key}={path}: no such file; `make weights` fetches the recipes' GGUF file")
        raise TagprError(f"{key}={path}: no such folder; give a Hugging Face model folder or a hub name (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=list(_FILES)))
    except Exception as error:  # the hub's client raises a dozen kinds: network, HTTP, cache, validation
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TagprError(
            f"{key}={path}: cannot be fetched from the hub ({reason}); download it on a machine with a network and "
            f"give the folder with {key}=<folder>"
        ) from error
