"""A proxy that refuses the hub is named; the model's name or a key alone is not blamed."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.refusing_proxy import refusing_proxy

from tagpr_rl.config import load_recipe
from tagpr_rl.preflight.finding import PlannedRun
from tagpr_rl.preflight.folder import models
from tagpr_rl.run.layout import RunDir

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke.yaml"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_before_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hf_hub_url", lambda *_: f"{scheme}://hub.example/config.json")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    recipe = load_recipe(SMOKE, ("model.path=owner/absent-model", f"out={tmp_path}"))
    with refusing_proxy(403) as (proxy, lines):
        monkeypatch.setenv(f"{scheme}_proxy", proxy.replace("//", "//me:secret@"))
        findings = [str(found) for found in models(PlannedRun(recipe, RunDir(tmp_path), list(recipe.stages)))]
    assert len(lines) == 1
    assert len(findings) == 1 and f"the proxy of ${scheme}_proxy" in findings[0] and "hub.example" in findings[0]
    assert "secret" not in findings[0]
