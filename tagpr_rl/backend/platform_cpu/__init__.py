"""verl plugin: the CPU as a verl platform.

Loaded through the entry-point group `verl.plugins` whenever verl is imported. It does nothing
unless `VERL_PLATFORM=cpu`, so it is inert on CUDA machines. verl logs a plugin's import error at
DEBUG level only and goes on as "nvidia"; `assert_platform` turns that into an error.
"""

from __future__ import annotations

import os


def requested() -> bool:
    """True where the process was told to use this platform."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def assert_platform(device: str) -> None:
    """Raise RuntimeError unless verl resolved the platform that the recipe asks for."""
    from verl.plugin.platform import get_platform

    resolved = get_platform().device_name
    if resolved != device:
        raise RuntimeError(
            f"verl resolved the platform '{resolved}' but the recipe asks for '{device}'. "
            "Is tagpr_rl installed in this environment (its entry point registers the CPU platform)?"
        )


if requested():
    from tagpr_rl.backend.platform_cpu import patches

    patches.before_verl()

    from tagpr_rl.backend.platform_cpu import platform  # noqa: F401  (registers itself)
