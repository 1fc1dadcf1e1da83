"""Training stages: SFT and PRMU, and what all of them share. Each drives one module of the backend."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from tagpr_rl.backend.tracking.settings import TrackingSettings, settings_dict
from tagpr_rl.backend.tracking.tracker import warnings_file
from tagpr_rl.backend.trainer.overrides import StagePaths, sft_overrides, world_size
from tagpr_rl.config import GrpoStage, PrmuStage, Recipe, SftStage
from tagpr_rl.files import sha256_file, write_json, write_text
from tagpr_rl.monitor.alerts import ALERTS, read_alerts
from tagpr_rl.prompts.rows import sft_rows, write_parquet
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.report.cards.model_card import prmu_card
from tagpr_rl.run import checkpoints, metrics
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import stage_config, stage_inputs
from tagpr_rl.run.resume import ATTEMPT, fact_changes
from tagpr_rl.run.trackers import step_offset, tracker_id
from tagpr_rl.stages.context import StageContext, StageResult
from tagpr_rl.stages.fetch import model_folder
from tagpr_rl.stages.prmu_pairs import PAIRS, training_pairs
from tagpr_rl.stages.watch import wait_with_progress
from tagpr_rl.types import TagprError

RESUMABLE = ("checkpoints", "metrics.jsonl", "rollouts", ATTEMPT, ALERTS)
_SAME_NAME = (
    "batch_size", "lr", "head_lr", "individual_weight", "centre", "user", "identity", "user_dropout", "max_items",
    "eval_every", "patience", "seed",
)  # fmt: skip
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "chat_template*")


def run_sft(context: StageContext) -> StageResult:
    """Fine-tune on direct answers or tagged chains with verl's SFT trainer."""
    recipe, stage = context.recipe, context.recipe.stages[context.name]
    assert isinstance(stage, SftStage)
    context.guard_attempt()
    context.clean(*RESUMABLE)
    rows, dropped = _sft_examples(context, stage)
    if len(rows) < stage.batch_size:
        raise TagprError(
            f"stage '{context.name}': {len(rows)} training examples are fewer than batch_size={stage.batch_size}"
        )
    train = context.dir.root / "train.parquet"
    write_parquet(train, rows)
    paths = stage_paths(context, stage.init, train)
    steps = steps_within(stage.steps, stage.batch_size, len(rows), stage.max_epochs)
    overrides = sft_overrides(recipe, context.name, paths, steps)
    start = resume_from(context, paths.model)
    if start.step < steps:
        ray = context.start_ray()
        from tagpr_rl.backend.trainer.sft import run_sft as train_remote

        task = ray.remote(num_cpus=1)(train_remote).remote(
            world_size(recipe), overrides, tracking(context), recipe.platform.device
        )
        wait_for(context, ray, task, steps, lambda row: f"loss {row.get('train/loss', float('nan')):.3f}")
    publish(context, last_checkpoint(context, steps) / "huggingface")
    last = metrics.last(context.dir.metrics) or {}
    figures = {"examples": float(len(rows)), "too_long": float(dropped), "loss": float(last["train/loss"])}
    notes = (*stage_notes(context, start), *_capped(steps, stage.steps, len(rows), stage.max_epochs))
    return StageResult(outputs=(context.dir.hf, context.dir.metrics), metrics=figures, notes=notes)


def steps_within(steps: int, batch_size: int, examples: int, max_epochs: float) -> int:
    """`steps`, or as many as make `max_epochs` passes over the examples; at least 1."""
    return max(1, min(steps, math.ceil(max_epochs * examples / batch_size)))


def _capped(steps: int, asked: int, examples: int, max_epochs: float) -> tuple[str, ...]:
    if steps == asked:
        return ()
    return (f"{steps} of {asked} steps: max_epochs={max_epochs:g} passes over {examples} examples",)


def _sft_examples(context: StageContext, stage: SftStage) -> tuple[list[dict[str, Any]], int]:
    recipe = context.recipe
    tokenizer = ChatTokenizer(context.earlier(stage.init, reads=("hf",)).hf)
    limit = recipe.data.prompt.max_response_tokens
    if stage.dataset == "chains":
        import pyarrow.parquet as pq

        chains = context.nearest("chains", reads=("chains.parquet",)).root / "chains.parquet"
        rows = pq.read_table(chains, columns=["messages", "response"]).to_pylist()
        return sft_rows(tokenizer, [(row["messages"], row["response"]) for row in rows], limit)
    make = context.dataset.prompt_maker("direct", tokenizer)
    return sft_rows(tokenizer, [(make(r).messages, r.gold) for r in context.dataset.train if r.gold is not None], limit)


def run_prmu(context: StageContext) -> StageResult:
    """Train PRMU on the chains stage's pairs, and on the policy's own where asked for, in a Ray task."""
    recipe, stage = context.recipe, context.recipe.stages[context.name]
    assert isinstance(stage, PrmuStage)
    context.guard_attempt()
    context.clean(*RESUMABLE, PAIRS)
    pairs = context.dir.root / PAIRS
    examples = training_pairs(context, stage, pairs)
    steps = steps_within(stage.steps, stage.batch_size, examples, stage.max_epochs)
    settings = {
        "steps": steps,
        "micro_batch_size": stage.micro_batch_size or 0,
        "warmup": min(stage.warmup_steps, steps // 2),
        **{name: getattr(stage, name) for name in _SAME_NAME},
    }
    if stage.backbone is not None:
        backbone = model_folder(stage.backbone, f"stages.{context.name}.backbone")
    else:
        backbone = context.model_folder(stage.init)
    ray = context.start_ray()
    from tagpr_rl.backend.scoring.prmu_train import train_prmu_remote

    start = resume_from(context, backbone)
    task = train_prmu_remote.remote(
        str(pairs.resolve()),
        str(backbone.resolve()),
        str((context.dir.root / "prmu").resolve()),
        settings,
        tracking(context),
        recipe.platform.threads,
        stage.zero().model_dump() if stage.strategy == "deepspeed" else None,
        (str(context.dir.checkpoints.resolve()), stage.save_every or 0),
        stage.user_shards,
    )
    wait_for(context, ray, task, steps, lambda row: f"accuracy {row.get('prmu/accuracy', 0):.2f}")
    figures: dict[str, float] = ray.get(task)
    write_json(context.dir.root / "prmu.json", figures)
    shutil.rmtree(context.dir.checkpoints, ignore_errors=True)  # the stage's result is in prmu/
    card = prmu_card(recipe, context.name, figures)
    write_text(context.dir.root / "prmu" / "README.md", card)
    outputs = (context.dir.root / "prmu", context.dir.root / "prmu.json", context.dir.metrics, pairs)
    first = [key for key in ("unseen/accuracy", "unseen/cross_profile", "unseen/shuffled") if key in figures]
    ordered = {key: figures[key] for key in (*first, *(key for key in figures if key not in first))}
    notes = (*stage_notes(context, start), *_capped(steps, stage.steps, examples, stage.max_epochs))
    return StageResult(outputs=outputs, metrics=ordered, notes=notes)


def stage_paths(context: StageContext, init: str, train: Path) -> StagePaths:
    """Files and folders of the stage, starting from the weights of stage `init`."""
    return StagePaths(
        model=context.model_folder(init),
        train=train.resolve(),
        checkpoints=context.dir.checkpoints.resolve(),
        rollouts=context.dir.rollouts.resolve(),
    )


def tracking(context: StageContext) -> dict[str, Any]:
    """`tracking_settings` of the stage as a plain dict."""
    return settings_dict(tracking_settings(context.recipe, context.run, context.name, context.outages))


def tracking_settings(recipe: Recipe, run: RunDir, name: str, outages: Sequence[str] = ()) -> TrackingSettings:
    """How the stage `name` logs: all stages of a run are one run at its trackers.

    After an outage the rest of this process's stages are recorded offline, at once and without another warning.
    """
    log = recipe.log
    mode = "offline" if outages and log.wandb == "online" else log.wandb
    return TrackingSettings(
        metrics_file=str(stage_dir(recipe, run, name).metrics.resolve()),
        wandb_mode=mode,
        wandb_dir=str(run.root.resolve()),
        project=log.project,
        group=recipe.name,
        stage=name,
        run_id=tracker_id(run),
        step_offset=step_offset(recipe, name),
        tensorboard=log.tensorboard,
        alerts=stage.alerts.model_dump() if isinstance(stage := recipe.stages[name], GrpoStage) else None,
    )


def resume_from(context: StageContext, model: Path) -> checkpoints.Chosen:
    """The checkpoint that verl will go on from (step 0 = none); later metrics and rollouts are dropped."""
    recipe, name = context.recipe, context.name
    stage = recipe.stages[name]
    assert isinstance(stage, SftStage | GrpoStage | PrmuStage)
    tokenizer = [path for part in _TOKENIZER_FILES for path in sorted(model.glob(part)) if path.is_file()]
    facts = {
        "stage": name,
        "config": stage_config(recipe, name),
        "inputs": stage_inputs(recipe, context.run, name),
        "tokenizer": {path.name: sha256_file(path) for path in tokenizer},
        "world_size": 1 if isinstance(stage, PrmuStage) else world_size(recipe),
    }
    root = context.dir.checkpoints
    elastic = getattr(stage, "strategy", "fsdp2") == "deepspeed"  # universal checkpoints
    identity = checkpoints.begin(root, facts, keep=stage.keep_checkpoints, any_world_size=elastic)
    chosen = checkpoints.choose(root, identity, partial(fact_changes, recipe, name))
    for note in chosen.notes:
        context.console.print(f"[yellow]{name}: {escape(note)}[/yellow]", highlight=False, soft_wrap=True)
    metrics.trim(context.dir.metrics, chosen.step)
    for file in context.dir.rollouts.glob("step_*.*"):
        if int(file.stem.removeprefix("step_")) > chosen.step:
            file.unlink()
    return chosen


def last_checkpoint(context: StageContext, steps: int) -> Path:
    """The checkpoint of the last step. TagprError where training ended without it: no stage is done halfway."""
    found = checkpoints.steps(context.dir.checkpoints)
    rows = metrics.last(context.dir.metrics) or {"step": 0}
    if not found or found[-1] != steps or rows["step"] != steps:
        raise TagprError(
            f"stage '{context.name}' ended at step {rows['step']} of {steps}, with checkpoints of the steps "
            f"{found or 'none'}; `launch.py resume {context.run.root}` goes on"
        )
    return checkpoints.step_folder(context.dir.checkpoints, steps)


def stage_notes(context: StageContext, start: checkpoints.Chosen) -> tuple[str, ...]:
    """What a reader of the manifest must know of how the stage went."""
    path = warnings_file(context.dir.root)
    warned = tuple(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else ()
    alerts = tuple(f"alert at step {a.step}, {a.kind}: {a.text}" for a in read_alerts(context.dir.root / ALERTS))
    return (*start.notes, *((f"resumed from step {start.step}",) if start.step else ()), *warned, *alerts)


def wait_for(context: StageContext, ray: Any, task: Any, steps: int, describe: Callable[[dict[str, Any]], str]) -> None:
    """Show progress until the Ray task ends; mirror checkpoints and pass on alerts meanwhile. Raises what it raised."""
    keep = getattr(context.recipe.stages[context.name], "keep_checkpoints", 1)

    told = len(read_alerts(context.dir.root / ALERTS))

    def tell_alerts() -> None:
        nonlocal told
        for alert in read_alerts(context.dir.root / ALERTS)[told:]:
            text = f"{context.name}: alert at step {alert.step}, {alert.kind}: {alert.text}"
            context.console.print(f"[yellow]{escape(text)}[/yellow]", highlight=False, soft_wrap=True)
            told += 1

    def done(seconds: float) -> bool:
        _mirror_checkpoint(context, keep)
        tell_alerts()
        return bool(ray.wait([task], timeout=seconds)[0])

    wait_with_progress(context.console, context.name, context.dir.metrics, steps, describe, done)
    try:
        ray.get(task)  # raises what the stage raised
    except TagprError as error:
        raise plain_error(error) from error
    finally:
        tell_alerts()
        warned = warnings_file(context.dir.root)
        for line in warned.read_text(encoding="utf-8").splitlines() if warned.is_file() else ():
            context.console.print(f"[yellow]{context.name}: {escape(line)}[/yellow]", highlight=False, soft_wrap=True)
            context.outages.append(line)


def plain_error(error: TagprError) -> TagprError:
    """The error as it was raised: Ray wraps it, once per task on the way, with the worker's traceback for a text."""
    cause: BaseException = error
    while isinstance(inner := getattr(cause, "cause", None), BaseException):
        cause = inner
    return TagprError(str(cause))


def _mirror_checkpoint(context: StageContext, keep: int) -> None:
    """Copy a new checkpoint to the run's URL. A failure is said, and tried again with the next checkpoint."""
    if context.mirror is None:
        return
    newest = (context.name, max(checkpoints.steps(context.dir.checkpoints), default=0))
    try:
        if newest != context.mirror.failed:
            context.mirror.push_checkpoint(context.run, context.dir, keep)
    except TagprError as error:
        context.mirror.failed = newest
        context.console.print(f"[yellow]{escape(str(error))}[/yellow]", highlight=False, soft_wrap=True)


def publish(context: StageContext, source: Path) -> None:
    """Copy verl's Hugging Face export to `hf/`, through a temporary name; an adapter is merged into its weights.

    verl writes fp32 tensors under a config that says bfloat16 (fsdp_checkpoint_manager.py:446); the
    config is made to say what the tensors are.
    """
    temp = context.dir.root / ".hf"
    shutil.rmtree(temp, ignore_errors=True)
    shutil.copytree(source, temp)
    lora = context.recipe.lora
    if lora is not None:
        from tagpr_rl.backend.trainer.lora import merge_export

        merge_export(temp, lora.alpha / lora.rank)
    config = json.loads((temp / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    write_json(temp / "config.json", config)
    shutil.rmtree(context.dir.hf, ignore_errors=True)
    temp.rename(context.dir.hf)
