"""Recipe keys of earlier releases that no longer exist, and what to do instead. Runs made with them stay readable."""

from __future__ import annotations

RETIRED: dict[str, str] = {
    "platform.cuts": "remove it: the CPU platform always runs with these settings, none of which changes a token",
    **{
        f"budget.{key}": "remove it, or name the nearest GPU in budget.device"
        for key in ("memory_gib", "peak_tflops", "bandwidth_gbps")
    },
    **{
        f"budget.{key}": "remove it: the assumptions of `tagpr plan` stand in tagpr_rl/plan"
        for key in ("mfu", "decode_efficiency", "mean_length", "reserve_gib")
    },
}
"""Dotted key (`*` stands for any stage's name) -> the remedy, as the end of an error message."""
