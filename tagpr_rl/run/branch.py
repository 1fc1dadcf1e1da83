"""A run that starts from the finished stages of another run, so that a late change never repeats the early stages.

A stage is taken if the other run finished it, its files are as they were made, and the new recipe would make it from
the same values and inputs. Sub-folders (weights, rollouts) become hard links, which cost no space; deleting either run
leaves the other one whole. On another file system they are copied. Single files are copied, since some of them grow.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tagpr_rl.config import Recipe
from tagpr_rl.run.layout import RunDir, StageDir, stage_dir
from tagpr_rl.run.manifest import identity, read_manifest, verify_outputs, write_manifest
from tagpr_rl.run.mirror import is_url
from tagpr_rl.run.open import Run, open_run, read_resolved
from tagpr_rl.run.state import StageStatus, config_changes, differences
from tagpr_rl.types import StageManifest, TagprError

_LEFT_OUT = ("checkpoints", "manifest.json", "attempt.json")


def from_override(text: str) -> str:
    """The override that `--from RUN[:STAGE]` stands for: `from_run={run: ..., until: ...}`."""
    head, colon, stage = text.rpartition(":")
    run, until = (head, stage) if colon and stage.isidentifier() else (text, "")
    return f"from_run={json.dumps({'run': run, 'until': until or None})}"


def require_another_run(recipe: Recipe, run: RunDir) -> None:
    """Raise TagprError if `recipe.from_run` is the new run's own folder or copy, which --fresh would delete."""
    if recipe.from_run is None:
        return
    source, copy = recipe.from_run.run.rstrip("/"), f"{(recipe.mirror or '').rstrip('/')}/{recipe.name}"
    if source == copy or (not is_url(source) and Path(source).resolve() == run.root.resolve()):
        raise TagprError(f"{source} cannot start from itself; give the new run another name: name=<new name>")


def take_stages(recipe: Recipe, run: RunDir) -> tuple[str, ...]:
    """Take the stages that `recipe.from_run` names into the new run; one line for each stage about what was done.

    Nothing is done in a run that exists already. TagprError if that run was started from elsewhere, if a file of the
    other run is damaged, or if a stage up to `from_run.until` cannot be taken.
    """
    branch = recipe.from_run
    if branch is None:
        return ()
    if run.resolved.is_file():
        if read_resolved(run).from_run != branch:
            require_another_run(recipe, run)
            raise TagprError(
                f"{run.root} exists and was not started from {branch.run}; "
                "use another name (name=<new name>) or --fresh"
            )
        return ()
    source = open_run(branch.run)
    names = list(recipe.stages)
    wanted = names[: names.index(branch.until) + 1] if branch.until else names
    states: dict[str, StageStatus] = {}
    lines = []
    for name in wanted:
        kind = recipe.stages[name].kind
        origin = stage_dir(source.recipe, source.folder, name) if name in source.recipe.stages else None
        manifest = read_manifest(origin) if origin is not None else None
        reasons = _obstacles(recipe, run, name, manifest, states)
        states[name] = StageStatus(name, kind, "todo" if reasons else "done", reasons)
        if reasons and branch.until:
            raise TagprError(
                f"stage '{name}' cannot be taken from {branch.run}:\n  "
                + "\n  ".join(reasons)
                + f"\nName an earlier stage (--from {branch.run}:<stage>), or none (--from {branch.run}) to take every "
                "stage that fits and make the others anew."
            )
        if reasons:
            lines.append(f"{name:<9} is made anew: {'; '.join(reasons)}")
        else:
            assert origin is not None and manifest is not None
            lines.append(f"{name:<9} {_take(source, origin, manifest, stage_dir(recipe, run, name))} from {branch.run}")
    return tuple(lines)


def until_mistakes(recipe: Recipe) -> list[str]:
    """Why stages up to `from_run.until` cannot be taken from a run on this machine, as far as recipe values tell.

    TagprError if the other run cannot be read.
    """
    branch = recipe.from_run
    if branch is None or branch.until is None:
        return []
    source, names, mistakes = open_run(branch.run), list(recipe.stages), []
    for name in names[: names.index(branch.until) + 1]:
        known = name in source.recipe.stages
        manifest = read_manifest(stage_dir(source.recipe, source.folder, name)) if known else None
        if manifest is None:
            mistakes.append(f"stage '{name}': the other run has not finished a stage of this name")
        elif manifest.config:
            mistakes += [f"stage '{name}': {change}" for change in config_changes(recipe, name, manifest.config)]
    return mistakes


def _obstacles(
    recipe: Recipe, run: RunDir, name: str, manifest: StageManifest | None, earlier: Mapping[str, StageStatus]
) -> tuple[str, ...]:
    """Why the new run's stage `name` cannot be the one with this manifest; empty if it can."""
    if manifest is None:
        return ("the other run has not finished a stage of this name",)
    if manifest.kind != recipe.stages[name].kind:
        return (f"the other run's stage is of kind {manifest.kind}, not {recipe.stages[name].kind}",)
    return differences(recipe, run, name, manifest, earlier)


def _take(source: Run, origin: StageDir, manifest: StageManifest, target: StageDir) -> str:
    """Bring a verified stage into the new run, its manifest last. Returns "linked" or "copied"."""
    verify_outputs(origin, manifest)
    temp = StageDir(target.root.with_name(f".taking_{target.root.name}"))
    shutil.rmtree(temp.root, ignore_errors=True)
    linked = True
    for entry in sorted(origin.root.iterdir()):
        if entry.name in _LEFT_OUT or entry.name.startswith("."):
            continue
        linked &= _bring(entry, temp.root / entry.name)
    how = "linked" if linked else "copied"
    record = {"run": str(source.folder.root.resolve()), "name": source.recipe.name, "identity": identity(manifest)}
    note = f"{how} from run {source.recipe.name} ({source.folder.root})"
    details = {**manifest.details, "from_run": record}
    write_manifest(temp, replace(manifest, notes=(*manifest.notes, note), details=details))
    shutil.rmtree(target.root, ignore_errors=True)
    temp.root.rename(target.root)
    return how


def _bring(source: Path, target: Path) -> bool:
    """Copy a file, or link what a folder holds; True unless a link was impossible. A symbolic link stays one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.resolve())
        return True
    if source.is_file():
        shutil.copy2(source, target)
        return True
    linked = True
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place, follow_symlinks=False)
        except OSError:  # another file system, or one without hard links
            shutil.copy2(path, place, follow_symlinks=False)
            linked = False
    return linked
