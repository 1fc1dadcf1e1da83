"""Shared fixtures, and the hypothesis profile of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
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
