"""The manifest that a finished stage leaves in its folder: what the stage was made from, and its outputs.

A manifest holds two fingerprints: of the recipe values that the stage depends on, and of what it read (earlier stages,
files of the user's). Both are computed again before a stage is reused.

A stage's recipe values are its own block, and those parts of `data`, `model`, `lora`, `schema_file` and `platform`
that it reads (`stage_config`). Left out, because they change no result beyond rounding: `name`, `out`, `mirror`, `log`,
`save_every`, `keep_checkpoints`, `training`, `budget`, all of `platform` but `device`, and all of `placement` but a
separate rollout, whose responses come from older weights. Paths are left out as well; the *content* of the files they
name counts, as an input.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tagpr_rl.config import ChainsStage, EndpointBlock, GrpoStage, PrmuStage, Recipe, dump_recipe, upstream
from tagpr_rl.config.kinds import KINDS, WEIGHTS
from tagpr_rl.files import content_sha256, is_hub_name, sha256_file, sha256_json, write_json
from tagpr_rl.reward.components import source_file
from tagpr_rl.run.layout import RunDir, StageDir, stage_dir
from tagpr_rl.types import StageManifest, TagprError

ABSENT = "absent"
"""In the place of a hash: the stage or file is not there."""


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What a stage is made from."""

    config: Mapping[str, Any]
    """`stage_config`."""
    inputs: Mapping[str, str]
    """`stage_inputs`."""


def stage_facts(recipe: Recipe, run: RunDir, name: str) -> StageFacts:
    """What the stage would be made from now. Hashes files: compute it once."""
    return StageFacts(stage_config(recipe, name), stage_inputs(recipe, run, name))


def stage_config(recipe: Recipe, name: str) -> dict[str, Any]:
    """The recipe values that the stage depends on, as plain JSON (see the head of this file)."""
    dumped = dump_recipe(recipe)
    kind = recipe.stages[name].kind
    block = _without(dumped["stages"][name], "save_every", "keep_checkpoints", "save_tokens")
    config: dict[str, Any] = {"stage": block}
    if kind == "data":
        config["data"] = _without(dumped["data"], "lamp_dir", "retrieval", "prompt")
        config["data"]["from_files"] = recipe.data.lamp_dir is not None
        if recipe.data.lamp_dir is not None:
            config["data"].pop("world")
    else:
        config["data"] = {key: dumped["data"][key] for key in ("retrieval", "prompt")}
        if kind == "model":
            config["model"] = _without(dumped["model"], "path", "chat_template") | {
                "from_files": recipe.model.path is not None
            }
        else:
            config["model"] = {key: dumped["model"][key] for key in ("dtype", "thought_prefilled")}
        config["model"]["thought_prefilled"] = bool(recipe.model.thought_prefilled)  # null: as earlier releases' false
    if KINDS[kind].uses_ray:
        config["platform"] = {"device": recipe.platform.device}
    if KINDS[kind].trains and kind in WEIGHTS and recipe.lora is not None:
        config["lora"] = dumped["lora"]
    if kind == "grpo" and recipe.placement.rollout == "separate":  # responses of older weights
        config["placement"] = {key: dumped["placement"][key] for key in ("rollout", "warmup_batches")}
    return config


def stage_config_sha256(recipe: Recipe, name: str) -> str:
    """SHA-256 of `stage_config`."""
    return sha256_json(stage_config(recipe, name))


def stage_inputs(recipe: Recipe, run: RunDir, name: str) -> dict[str, str]:
    """What the stage reads -> SHA-256: `stage <name>` per earlier stage, and each file of the user's.

    A stage or file that is not there has the value "absent". Raises TagprError on a damaged manifest.
    """
    inputs = {}
    for other in upstream(recipe, name):
        manifest = read_manifest(stage_dir(recipe, run, other))
        inputs[f"stage {other}"] = ABSENT if manifest is None else identity(manifest)
    kind = recipe.stages[name].kind
    if kind == "data" and recipe.data.lamp_dir is not None:
        inputs |= _lamp_files(recipe.data.lamp_dir, recipe.data.tasks)
    if kind == "model" and recipe.model.path is not None:
        inputs |= _model_files(recipe.model.path)
        if recipe.model.chat_template is not None:
            inputs["chat_template"] = _file_identity(recipe.model.chat_template)
    if kind != "data":
        inputs |= _retrieval_files(recipe)
    stage = recipe.stages[name]
    for role in ("teacher", "labeller") if isinstance(stage, ChainsStage) else ():
        block = getattr(stage, role)
        if isinstance(block, EndpointBlock) and block.kind == "vllm" and Path(block.model or "").is_dir():
            inputs |= _model_files(Path(block.model or ""), role)
    if isinstance(stage, PrmuStage) and stage.backbone is not None:
        inputs |= _model_files(Path(stage.backbone), "backbone")
    if isinstance(stage, GrpoStage) and stage.rollouts_from is not None:
        source = stage.rollouts_from
        folder = stage_dir(recipe, run, source).rollouts if source in recipe.stages else Path(source)
        files = [folder / f"step_{step:04d}.parquet" for step in range(1, stage.steps + 1)]
        inputs |= {f"rollouts_from/{file.name}": _file_identity(file) for file in files}
    if isinstance(stage, GrpoStage):
        sources = {term.fn: source_file(term.fn) for term in stage.terms if term.fn}
        inputs |= {f"reward {fn}": ABSENT if file is None else _file_identity(file) for fn, file in sources.items()}
    if recipe.schema_file is not None and kind != "data":
        inputs["schema_file"] = _file_identity(recipe.schema_file)
    return inputs


def identity(manifest: StageManifest) -> str:
    """SHA-256 of what a stage made and from what; times, metrics and notes do not count."""
    return sha256_json([manifest.stage, manifest.config_sha256, dict(manifest.inputs), dict(manifest.outputs)])


def make_manifest(
    folder: StageDir,
    name: str,
    kind: str,
    facts: StageFacts,
    *,
    outputs: Iterable[Path],
    started: str,
    seconds: float,
    metrics: Mapping[str, float] | None = None,
    notes: tuple[str, ...] = (),
    details: Mapping[str, Any] | None = None,
) -> StageManifest:
    """The manifest of a stage that has just finished.

    `facts` are those of the moment when the stage *began*. `outputs` are files or folders (all files below) inside the
    stage's folder; each is hashed. Raises TagprError for an output that is not there.
    """
    return StageManifest(
        stage=name, kind=kind, started=started, seconds=seconds, inputs=dict(facts.inputs),
        config_sha256=sha256_json(facts.config), outputs=hash_outputs(folder, outputs),
        metrics=dict(metrics or {}), notes=notes, config=dict(facts.config), details=dict(details or {}),
    )  # fmt: skip


def hash_outputs(folder: StageDir, outputs: Iterable[Path]) -> dict[str, str]:
    """Path relative to the stage's folder -> SHA-256, for each file in `outputs` and below them."""
    hashed: dict[str, str] = {}
    for path in outputs:
        if not path.exists():
            raise TagprError(f"stage output {path} was not written; the stage is not complete")
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            hashed[file.relative_to(folder.root).as_posix()] = sha256_file(file)
    return dict(sorted(hashed.items()))


def write_manifest(folder: StageDir, manifest: StageManifest) -> None:
    """Write the manifest, atomically. Call it last: from here on the stage counts as complete."""
    write_json(folder.manifest, asdict(manifest))


def read_manifest(folder: StageDir) -> StageManifest | None:
    """The stage's manifest, or None if there is none. Raises TagprError if it is damaged."""
    path = folder.manifest
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(folder, f"it is not valid JSON ({error})") from None
    known = {field.name for field in fields(StageManifest)}
    needed = known - {"metrics", "notes", "config", "details"}
    if not isinstance(raw, dict) or not needed <= set(raw) or not set(raw) <= known:
        have = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
        raise _damaged(folder, f"expected the keys {sorted(needed)}, found {have}")
    for key in ("inputs", "outputs", "metrics", "config", "details"):
        if not isinstance(raw.get(key, {}), dict):
            raise _damaged(folder, f"'{key}' must be a mapping, not {type(raw[key]).__name__}")
    return StageManifest(**{**raw, "notes": tuple(raw.get("notes", ()))})


def _damaged(folder: StageDir, why: str) -> TagprError:
    return TagprError(
        f"manifest {folder.manifest} is damaged: {why}. Delete the folder {folder.root} to redo the stage."
    )


def verify_outputs(folder: StageDir, manifest: StageManifest, only: Iterable[str] = ()) -> None:
    """Compare the stage's outputs with their recorded hashes; a later stage calls this before it reads.

    `only` restricts the check to outputs that equal one of these relative paths or lie below it.
    Raises TagprError naming the first file that is missing or differs.
    """
    wanted = tuple(only)
    for name, expected in manifest.outputs.items():
        if wanted and not any(name == part or name.startswith(f"{part.rstrip('/')}/") for part in wanted):
            continue
        path = folder.root / name
        if not path.is_file():
            problem = "is missing"
        elif sha256_file(path) != expected:
            problem = "differs from what the stage wrote (its SHA-256 is not the recorded one)"
        else:
            continue
        raise TagprError(
            f"{path}, an output of stage '{manifest.stage}', {problem}. "
            f"Delete the folder {folder.root} to make the stage again."
        )


def _without(block: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key not in keys}


def _lamp_files(folder: Path, tasks: Iterable[str]) -> dict[str, str]:
    """The official files of the tasks, by path relative to `folder`."""
    hashes: dict[str, str] = {}
    for task in tasks:
        files = [*(folder / task).glob("*_questions.json"), *(folder / task).glob("*_outputs.json")]
        hashes |= {f"lamp_dir/{task}/{file.name}": sha256_file(file) for file in sorted(files)}
        if not files:
            hashes[f"lamp_dir/{task}"] = ABSENT
    return hashes


def _retrieval_files(recipe: Recipe) -> dict[str, str]:
    """The rankings or the encoder that prompts depend on."""
    block = recipe.data.retrieval
    if block.encoder is not None:
        files = sorted(path for path in block.encoder.glob("*") if path.is_file())
        return {f"encoder/{file.name}": _file_identity(file) for file in files} or {"encoder": ABSENT}
    if block.path is None:
        return {}
    if not block.path.is_dir():
        return {"rankings": _file_identity(block.path)}
    files = [block.path / f"{task}.json" for task in recipe.data.tasks]
    return {f"rankings/{file.name}": _file_identity(file) for file in files}


def _model_files(folder: Path, what: str = "model") -> dict[str, str]:
    """The files of a Hugging Face folder (top level: it has no others that matter), a GGUF file, or a hub's name."""
    if folder.is_file():
        return {f"{what}/{folder.name}": _file_identity(folder)}
    if not folder.is_dir() and is_hub_name(folder):
        return {what: f"hub {folder}"}
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    return {f"{what}/{file.name}": _file_identity(file) for file in files} or {what: ABSENT}


def _file_identity(path: Path) -> str:
    return content_sha256(path) if path.is_file() else ABSENT
