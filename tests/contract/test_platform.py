"""The CPU platform: resolved when asked for, inert otherwise, an error when it is not the one asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.stack, pytest.mark.torch]

CODE = """
import json, sys
import importlib.metadata
version = importlib.metadata.version
import verl
from verl.plugin.platform import get_platform, PlatformRegistry
import torch
platform = get_platform()
from tagpr_rl.backend.platform_cpu import assert_platform
try:
    assert_platform(sys.argv[1]); error = ""
except RuntimeError as problem:
    error = str(problem)
print(json.dumps({
    "name": platform.device_name, "registered": "cpu" in PlatformRegistry.registered_names(),
    "patched": importlib.metadata.version is not version,
    "modules": sorted(m for m in sys.modules if m.startswith("tagpr_rl.backend.platform_cpu")),
    "error": error,
    "equal": platform.device_module == torch.cpu if platform.device_name == "cpu" else None,
    "memory": platform.device_module.memory_allocated() if platform.device_name == "cpu" else None,
}))
"""


def resolve(asked: str, platform: str | None) -> dict[str, object]:
    environment = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"}
    if platform is not None:
        environment["VERL_PLATFORM"] = platform
    done = subprocess.run([sys.executable, "-c", CODE, asked], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    actual: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return actual


def test_cpu_is_resolved_and_behaves_like_a_device() -> None:
    actual = resolve("cpu", "cpu")
    assert actual["name"] == "cpu" and actual["registered"] and actual["patched"]
    assert actual["equal"] is True
    assert isinstance(actual["memory"], int) and actual["memory"] > 50 * 2**20  # a process with torch in it
    assert actual["error"] == ""


def test_asking_for_another_device_than_the_resolved_one_is_an_error() -> None:
    error = resolve("cuda", "cpu")["error"]
    assert isinstance(error, str) and "'cpu'" in error and "'cuda'" in error


@pytest.mark.parametrize("platform", [None, "nvidia"])
def test_plugin_is_inert_where_the_cpu_was_not_asked_for(platform: str | None) -> None:
    actual = resolve("cpu", platform)
    assert not actual["registered"] and not actual["patched"]
    assert "tagpr_rl.backend.platform_cpu.platform" not in actual["modules"]  # type: ignore[operator]
    assert "tagpr_rl.backend.platform_cpu.workers" not in actual["modules"]  # type: ignore[operator]
    assert actual["error"] != ""
