"""What a training stage publishes says of itself what holds for every reader."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tagpr_rl.stages.common import publish


def test_the_published_config_is_of_the_tensors_and_not_of_the_training(tmp_path: Path) -> None:
    """A reader without the training's attention (vLLM, PRMU, a user's own script) would refuse its name."""
    export = tmp_path / "export"
    export.mkdir()
    written = {"model_type": "qwen3", "torch_dtype": "bfloat16", "attn_implementation": "packed_sdpa"}
    (export / "config.json").write_text(json.dumps(written), encoding="utf-8")
    folder = SimpleNamespace(root=tmp_path / "stage", hf=tmp_path / "stage" / "hf")
    folder.root.mkdir()
    context: Any = SimpleNamespace(dir=folder, recipe=SimpleNamespace(lora=None))
    publish(context, export)
    published = json.loads((folder.hf / "config.json").read_text(encoding="utf-8"))
    assert published == {"model_type": "qwen3", "dtype": "float32"}
    assert json.loads((export / "config.json").read_text(encoding="utf-8")) == written
