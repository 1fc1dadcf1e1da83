"""Shared fixtures, and the hypothesis profile of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# Time limits per example would make a busy machine look like a bug.
settings.register_profile("tagpr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tagpr"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def lamp_real() -> Path:
    """A folder of official LaMP files (not part of the repository); the test is skipped without one."""
    folder = Path(os.environ.get("TAGPR_LAMP_REAL", ROOT.parent / "shared" / "data" / "lamp_real"))
    if not folder.is_dir():
        pytest.skip("no official LaMP files; name their folder in TAGPR_LAMP_REAL")
    return folder


@pytest.fixture(scope="session")
def kuberay_schemas() -> dict[str, dict[str, Any]]:
    """Kind -> JSON schema of KubeRay's custom resources (not part of the repository), closed to unknown keys."""
    folder = Path(os.environ.get("TAGPR_KUBERAY_CRDS", ROOT.parent / "shared" / "data" / "kuberay"))
    if not folder.is_dir():
        pytest.skip("no KubeRay CRDs; name the folder of ray.io_rayclusters.yaml in TAGPR_KUBERAY_CRDS")
    schemas = {}
    for name in ("rayclusters", "rayjobs"):
        definition = yaml.load((folder / f"ray.io_{name}.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
        version = next(item for item in definition["spec"]["versions"] if item["name"] == "v1")
        schemas[definition["spec"]["names"]["kind"]] = _closed(version["schema"]["openAPIV3Schema"])
    return schemas


def _closed(schema: Any) -> Any:
    """Kubernetes drops unknown keys in silence; here they are errors. `metadata` is open: its schema is elsewhere."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    actual = {key: _closed(value) for key, value in schema.items()}
    if "properties" in schema and schema.get("type") == "object" and "additionalProperties" not in schema:
        actual["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields", False))
    return actual
