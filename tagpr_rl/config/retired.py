"""Recipe keys of earlier releases that no longer exist, and what to do instead. Runs made with them stay readable."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

RETIRED: dict[str, str] = {
    "stages.*.norm_advantage_by_std": "advantage.normalise is group_std (for true) or none (for false)",
    "stages.*.advantage.step_return": "leave it out: a step's tokens get the step's own normalised reward",
    "platform.cuts": "remove it: the CPU platform always runs with these settings, none of which changes a token",
    "platform.object_store_mb": "remove it: nothing large passes through Ray's object store",
    "placement.prmu_serving.max_waiting": "remove it: a scorer's queue has a fixed bound",
    "cluster.launcher": "remove it: `tagpr cluster render` has the targets docker, kuberay, skypilot and slurm",
    "log.trackers": "use log.wandb (offline, online or disabled) and log.tensorboard (true or false)",
    **{
        f"budget.{key}": "remove it, or name the nearest GPU in budget.device"
        for key in ("memory_gib", "peak_tflops", "bandwidth_gbps")
    },
    **{
        f"budget.{key}": "remove it: the assumptions of `tagpr plan` stand in tagpr_rl/plan"
        for key in ("mfu", "decode_efficiency", "mean_length", "reserve_gib")
    },
    "stages.*.keep.evidence": "write keep.profile_evidence with the value of keep.evidence.require",
    "stages.*.keep.near_duplicates": "write keep.duplicate_scope with the value of keep.near_duplicates.scope",
    "stages.*.keep.balance": "write max_per_user and max_task_share directly below keep",
    "stages.*.keep.label_twice": "remove it; min_agreement: 0 labels each chain once",
    "stages.*.keep.tasks": "remove it: the answer rules are one set for all tasks",
    **{
        f"stages.*.keep.{key}": "remove it: tagpr_rl/chains/keep.py says what counts as a good answer and a good chain"
        for key in ("min_tag_score", "generation_good", "generation_least")
    },
}
"""Dotted key (`*` stands for any stage's name) -> the remedy, as the end of an error message.

A row covers everything below its key, so one row retires a whole block.
"""


def remedy(key: str) -> str | None:
    """What to do instead of the dotted recipe key `key`, or None if it was never retired."""
    parts = key.split(".")
    for row, text in RETIRED.items():
        pattern = row.split(".")
        if len(pattern) <= len(parts) and all(own in ("*", part) for own, part in zip(pattern, parts, strict=False)):
            return text
    return None


KEEP_SUCCESSORS = {
    "profile_evidence": ("evidence", "require"),
    "duplicate_scope": ("near_duplicates", "scope"),
    "max_per_user": ("balance", "max_per_user"),
    "max_task_share": ("balance", "max_task_share"),
}
"""Key of a chains stage's `keep` -> the block and key that held its value in earlier releases."""


def without_retired(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded recipe `raw`, as plain values, without the keys that RETIRED names.

    A retired key that has a successor gives its value to it, so that an old run goes on with the same settings.
    """
    kept = _with_successors(raw)
    for row in RETIRED:
        kept = _without(kept, row.split("."))
    return kept


def _without(block: Mapping[str, Any], path: list[str]) -> dict[str, Any]:
    """A copy of `block` without what `path` leads to; `*` in the path matches every key."""
    first, *rest = path
    kept: dict[str, Any] = {}
    for key, value in block.items():
        if first not in ("*", key):
            kept[key] = value
        elif rest:
            kept[key] = _without(value, rest) if isinstance(value, Mapping) else value
    return kept


def _with_successors(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `raw` in which today's keys have the values of the retired keys that they replace."""
    new: dict[str, Any] = copy.deepcopy(dict(raw))
    log = new.get("log")
    if isinstance(log, dict) and "trackers" in log:
        log.setdefault("tensorboard", "tensorboard" in log["trackers"])
        if "wandb" not in log["trackers"]:
            log["wandb"] = "disabled"
    stages = new.get("stages")
    for stage in stages.values() if isinstance(stages, dict) else ():
        if not isinstance(stage, dict):
            continue
        if "norm_advantage_by_std" in stage:
            advantage = stage.setdefault("advantage", {})
            advantage.setdefault("normalise", "group_std" if stage["norm_advantage_by_std"] else "none")
        if isinstance(weights := stage.get("weights"), dict):
            weights.setdefault("gate", False)  # earlier releases had none
        if isinstance(keep := stage.get("keep"), dict):
            _rename_keep(keep)
    return new


def _rename_keep(keep: dict[str, Any]) -> None:
    """Add today's keys to a recorded `keep` block."""
    for key, (block, old) in KEEP_SUCCESSORS.items():
        if isinstance(values := keep.get(block), dict) and old in values:
            keep.setdefault(key, values[old])
    if keep.get("label_twice") is False:
        keep["min_agreement"] = 0.0
