"""Folders and hub names of models: which is which, and one clear error where neither can be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.config import load_recipe
from tagpr_rl.files import is_hub_name
from tagpr_rl.model.fetch import model_folder
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.manifest import stage_inputs
from tagpr_rl.types import TagprError

DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo.yaml"


@pytest.mark.parametrize(
    "name, hub",
    [("Qwen/Qwen3-8B", True), ("Qwen/Qwen3-0.6B", True), ("/models/qwen", False), ("qwen", False), ("a/b/c", False),
     ("../qwen", False), ("a/", False), ("~/qwen", False)],
)  # fmt: skip
def test_hub_names(name: str, hub: bool) -> None:
    assert is_hub_name(name) is hub and (name.endswith("/") or is_hub_name(Path(name)) is hub)


def test_a_folder_is_taken_as_it_is_and_another_path_is_an_error(tmp_path: Path) -> None:
    assert model_folder(tmp_path, "model.path") == tmp_path
    with pytest.raises(TagprError, match=r"model\.path=.*nothing: no such folder; give .* or a hub name"):
        model_folder(tmp_path / "nothing", "model.path")


def test_a_hub_name_is_downloaded_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    requested: list[Any] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        requested.append((name, allow_patterns))
        if len(requested) > 1:
            raise ConnectionError("no route\nto host")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert model_folder("Qwen/Qwen3-8B", "model.path") == tmp_path
    name, patterns = requested[0]
    assert name == "Qwen/Qwen3-8B" and "*.safetensors" in patterns and not {"*.bin", "*.pt", "*"} & set(patterns)
    with pytest.raises(TagprError, match=r"stages\.prmu\.backbone=Qwen/Qwen3-8B: cannot be fetched .*no route\)"):
        model_folder("Qwen/Qwen3-8B", "stages.prmu.backbone")


def test_another_hub_name_is_another_input(tmp_path: Path) -> None:
    inputs = [
        stage_inputs(load_recipe(DEMO, (f"model.path=Qwen/{name}",)), RunDir(tmp_path), "model")["model"]
        for name in ("Qwen3-8B", "Qwen3-4B")
    ]
    assert inputs == ["hub Qwen/Qwen3-8B", "hub Qwen/Qwen3-4B"]
