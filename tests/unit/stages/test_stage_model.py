"""The model stage looks at the template and tokenizer of the folder it links, mends or refuses it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tagpr_rl.config import recipe_from_dict
from tagpr_rl.run.layout import RunDir
from tagpr_rl.stages import model
from tagpr_rl.stages.context import StageContext, StageResult
from tagpr_rl.types import TagprError

pytest.importorskip("transformers")
from support.made_tokenizers import CHATML, MADE, byte_level

pytestmark = pytest.mark.torch


def folder_of(path: Path, tokenizer: Any, **config: Any) -> Path:
    """A Hugging Face folder without weights."""
    tokenizer.save_pretrained(path)
    (path / "config.json").write_text(json.dumps({"vocab_size": 400, "eos_token_id": tokenizer.eos_token_id, **config}))
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def stage(
    tmp_path: Path, folder: Path | str, address: str | None = None, **block: Any
) -> tuple[StageContext, StageResult]:
    recipe = recipe_from_dict(
        {
            "name": "r", "out": str(tmp_path), "model": {"path": str(folder), **block},
            "platform": {"ray_address": address},
            "stages": {"data": {"kind": "data"}, "model": {"kind": "model"}},
        },
        source="test",
    )  # fmt: skip
    context = StageContext(recipe, RunDir(tmp_path / "r"), "model", Console(file=io.StringIO()), lambda: None)
    return context, model.run(context)


def test_a_right_folder_is_only_linked_and_its_facts_are_recorded(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "qwen", MADE["qwen3"]())
    context, result = stage(tmp_path, folder)
    assert context.dir.hf.is_symlink() and context.dir.hf.resolve() == folder
    record = json.loads((context.dir.root / "template.json").read_text())
    assert record["switch"] == "enable_thinking" and record["end"] == "<|im_end|>"
    assert result.details["template"] == record | {k: tuple(v) for k, v in record.items() if isinstance(v, list)}
    assert context.dir.root / "template.json" in result.outputs


def test_a_template_with_a_date_and_a_turn_without_a_stop_are_mended_in_links(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "llama", MADE["llama3"](), eos_token_id=301)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    context, result = stage(tmp_path, folder)
    own = {path.name for path in context.dir.hf.iterdir() if not path.is_symlink()}
    assert own == {"chat_template.jinja", "generation_config.json"}
    assert {context.dir.hf / name for name in own} <= set(result.outputs)
    assert json.loads((context.dir.hf / "generation_config.json").read_text())["eos_token_id"] == [301, 304]
    assert "01 Jan 2025" in (context.dir.hf / "chat_template.jinja").read_text()
    assert (context.dir.hf / "model.safetensors").read_bytes() == b"weights"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before  # the user's folder stays as it is
    assert any("today's date" in note for note in result.notes)


def test_a_template_of_the_user_s_own_is_used_and_published(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "base", byte_level(None))
    with pytest.raises(TagprError, match=f"model.path={folder}.*(\n.*)*model.chat_template: FILE"):
        stage(tmp_path, folder)
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML)
    context, _ = stage(tmp_path, folder, chat_template=str(file))
    assert (context.dir.hf / "chat_template.jinja").read_text() == CHATML
    with pytest.raises(TagprError, match=r"model.chat_template=.*nothing.jinja"):
        stage(tmp_path, folder, chat_template=str(tmp_path / "nothing.jinja"))


@pytest.mark.parametrize("name, opens", [("qwen3", False), ("qwen3_thinking", True), ("v31", True)])
def test_what_the_recipe_says_of_the_thought_must_be_so(tmp_path: Path, name: str, opens: bool) -> None:
    folder = folder_of(tmp_path / "m", MADE[name]())
    stage(tmp_path, folder, thought_prefilled=opens)
    says = "opens <think> itself" if opens else "does not open <think>"
    with pytest.raises(TagprError, match=f"thought_prefilled={str(not opens).lower()}, but the template {says}"):
        stage(tmp_path, folder, thought_prefilled=not opens)


def test_every_mistake_of_a_folder_is_named_at_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", MADE["qwen3"](), vocab_size=300)
    with pytest.raises(TagprError) as error:
        stage(tmp_path, folder, thought_prefilled=True)
    assert "embeds 300 tokens" in str(error.value) and "does not open <think>" in str(error.value)


def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a hub model in a cache: links to blobs. The hub's client answers with it."""
    import huggingface_hub

    blobs = folder_of(tmp_path / "cache" / "blobs", MADE["qwen3"]())
    snapshot = tmp_path / "cache" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(snapshot))
    return snapshot


def test_on_a_cluster_a_hub_model_lies_in_the_run_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub(tmp_path, monkeypatch)
    alone, _ = stage(tmp_path / "alone", "Qwen/Qwen3-8B")
    assert alone.dir.hf.resolve() == snapshot
    context, result = stage(tmp_path / "cluster", "Qwen/Qwen3-8B", address="10.0.0.1:6379")
    files = {path.name: path for path in context.dir.hf.iterdir()}
    assert not context.dir.hf.is_symlink() and set(files) >= {path.name for path in snapshot.iterdir()}
    assert not any(path.is_symlink() for path in files.values())
    assert files["model.safetensors"].samefile(snapshot / "model.safetensors")  # one file system: no second copy
    assert context.dir.hf / "config.json" in result.outputs
    shared, _ = stage(tmp_path / "shared", snapshot, address="10.0.0.1:6379")
    assert shared.dir.hf.is_symlink()  # a folder that the user names is on every node, as the user says


def test_files_on_another_file_system_are_copied_and_what_is_left_halfway_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tagpr_rl.model import fetch

    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    snapshot, target = hub(tmp_path, monkeypatch), tmp_path / "out" / "backbone"
    monkeypatch.setattr(fetch.os, "link", refuse)
    (target.parent / ".backbone").mkdir(parents=True)
    (target.parent / ".backbone" / "half").write_bytes(b"")
    assert fetch.copy_of(snapshot, target) == target
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        path.name: path.read_bytes() for path in snapshot.iterdir()
    }
    assert [path.name for path in target.parent.iterdir()] == ["backbone"]
    (target / "mark").touch()
    assert fetch.copy_of(snapshot, target) == target and (target / "mark").exists()
