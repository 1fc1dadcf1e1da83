"""Which stages of a run are done, still to do, or made from inputs that have changed since.

A finished stage's manifest is compared with what the stage would be made from now, so a stage is never reused for a
recipe that would have made something else.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from tagpr_rl.config import (
    Closed,
    DataBlock,
    LoraBlock,
    ModelBlock,
    PlacementBlock,
    PlatformBlock,
    Recipe,
)
from tagpr_rl.config.retired import without_retired
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import ABSENT, read_manifest, stage_config, stage_config_sha256, stage_inputs
from tagpr_rl.types import StageManifest, TagprError

Status = Literal["done", "todo", "changed"]


@dataclass(frozen=True, slots=True)
class StageStatus:
    """State of one stage and, for "changed", one line per difference."""

    name: str
    kind: str
    status: Status
    reasons: tuple[str, ...] = ()


def stage_status(recipe: Recipe, run: RunDir, name: str) -> StageStatus:
    """Done, todo or changed, with one reason per difference. Raises TagprError on a damaged manifest."""
    return run_status(recipe, run, until=name)[name]


def run_status(recipe: Recipe, run: RunDir, *, until: str | None = None) -> dict[str, StageStatus]:
    """Status of every stage in order (up to and including `until`).

    A finished stage whose earlier stage is to be made again counts as changed, even if nothing of
    its own differs: what it was made from will be gone.
    """
    statuses: dict[str, StageStatus] = {}
    for name, stage in recipe.stages.items():
        manifest = read_manifest(stage_dir(recipe, run, name))
        if manifest is None:
            statuses[name] = StageStatus(name, stage.kind, "todo")
        else:
            reasons = differences(recipe, run, name, manifest, statuses)
            statuses[name] = StageStatus(name, stage.kind, "changed" if reasons else "done", reasons)
        if name == until:
            break
    return statuses


def require_unchanged(recipe: Recipe, run: RunDir) -> dict[str, StageStatus]:
    """`run_status`, but a changed stage raises TagprError naming what changed and the remedies."""
    statuses = run_status(recipe, run)
    changed = [status for status in statuses.values() if status.status == "changed"]
    if changed:
        lines = [f"stage '{s.name}': {reason}" for s in changed for reason in s.reasons]
        raise TagprError(
            f"run {run.root} was made from other inputs; nothing was run:\n  "
            + "\n  ".join(lines)
            + "\nUse another folder (name=<new name>), start over (--fresh), "
            + f"or delete {stage_dir(recipe, run, changed[0].name).root} and the later stages' folders."
        )
    return statuses


def differences(
    recipe: Recipe, run: RunDir, name: str, manifest: StageManifest, earlier: Mapping[str, StageStatus]
) -> tuple[str, ...]:
    """One line per difference between a manifest and what the stage would be made from now."""
    reasons = []
    if manifest.config_sha256 != stage_config_sha256(recipe, name):
        if manifest.config:
            reasons += config_changes(recipe, name, manifest.config)
        else:
            reasons.append("its recorded recipe values differ")
    now = stage_inputs(recipe, run, name)
    for key in sorted(set(now) | set(manifest.inputs)):
        other = key.removeprefix("stage ")
        old, new = manifest.inputs.get(key), now.get(key)
        if key.startswith("stage ") and other in earlier and earlier[other].status != "done":
            what = "is to be made again" if earlier[other].status == "todo" else "has changed"
            reasons.append(f"{key}, which it reads, {what}")
        elif old == new or (old or "").endswith(" bytes"):  # an earlier release knew large files by their size
            continue
        elif new == ABSENT:
            reasons.append(f"{key} is missing; it was read when the stage was made")
        elif old is None or new is None:
            reasons.append(f"{key} was {'not ' if old is None else ''}read when the stage was made")
        else:
            reasons.append(f"the content of {key} changed")
    return tuple(reasons)


def config_changes(recipe: Recipe, name: str, recorded: Mapping[str, Any]) -> list[str]:
    """What differs between the recipe values that a stage was made from and those of `recipe`, one line per key.

    An earlier release may have recorded them: a key that has been retired since does not count, and neither does a key
    that is new and has its default.
    """
    config = stage_config(recipe, name)
    plain = without_retired({**recorded, "stages": {name: recorded.get("stage", {})}})
    plain["stage"] = plain.pop("stages").get(name, {})
    blocks: dict[str, type[Closed]] = {
        "stage": type(recipe.stages[name]), "data": DataBlock, "model": ModelBlock, "platform": PlatformBlock,
        "lora": LoraBlock, "placement": PlacementBlock,
    }  # fmt: skip
    for part, block in blocks.items():
        if part in plain and part in config:
            plain[part] = _with_defaults(block, plain[part], config[part])
    return compare(plain, config)


def _with_defaults(block: type[Closed], recorded: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """`recorded` with those of its keys, and of the `wanted` ones, that `block` knows as `block` writes them today."""
    try:
        complete = block.model_validate({key: recorded[key] for key in recorded if key in block.model_fields})
    except ValidationError:
        return dict(recorded)
    dumped = complete.model_dump(mode="json")
    return {**recorded, **{key: dumped[key] for key in {*recorded, *wanted} if key in dumped}}


def compare(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Differences of two JSON values, one line per key: `stage.lr: 0.003 -> 0.001`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted(set(old) | set(new)):
            lines += compare(old.get(key, "(not set)"), new.get(key, "(not set)"), f"{prefix}{key}.")
        return lines
    return [] if old == new else [f"{prefix.rstrip('.')}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
