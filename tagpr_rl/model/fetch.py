"""A model's folder: the one named, or a download of a hub name into the Hugging Face cache."""

from __future__ import annotations

import os
import shutil
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


def copy_of(folder: Path, target: Path) -> Path:
    """`target`, a folder with the files of a model's `folder`: hard links on one file system, else copies.

    The hub's cache lies on the machine that downloads, as links; other nodes see the files of a run alone. A `target`
    that exists is whole, since it gets its name last.
    """
    if target.is_dir() and not target.is_symlink():
        return target
    part = target.with_name(f".{target.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in sorted(folder.iterdir()):
        if not file.is_file():
            continue
        source = file.resolve()
        try:
            os.link(source, part / file.name)
        except OSError:  # another file system, or one without hard links
            try:
                shutil.copyfile(source, part / file.name)
            except OSError as error:
                shutil.rmtree(part, ignore_errors=True)
                raise TagprError(
                    f"{target}: {file.name} of the model in {folder} cannot be copied there ({error.strerror}); the "
                    "run's folder must hold the model, since other nodes do not see this machine's cache"
                ) from error
    part.rename(target)
    return target
