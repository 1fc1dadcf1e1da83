"""Checkpoints of the DeepSpeed engine, and their conversion for another world size.

A checkpoint folder holds `deepspeed/` (weights and optimizer, DeepSpeed's own files), one
`extra_state_world_size_W_rank_R.pt` per rank (LR schedule, random generators; the names are verl's), `huggingface/`
(config, tokenizer and, if asked for, fp32 weights) and `deepspeed.json` (what it was written with), written last.
Loading never changes it: a conversion for another world size goes to a folder beside it, which is then removed.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager

from tagpr_rl.backend.deepspeed.zero import master_weights
from tagpr_rl.files import write_json
from tagpr_rl.types import TagprError

NATIVE, UNIVERSAL, MANIFEST = "deepspeed", "universal", "deepspeed.json"
CONVERSION_LIMIT = datetime.timedelta(hours=6)


class DeepSpeedCheckpointManager(BaseCheckpointManager):
    """verl's checkpoint interface over `DeepSpeedEngine.save_checkpoint`."""

    def __init__(self, *args: Any, convert_other_world_size: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.convert_other_world_size = convert_other_world_size

    # --- save ---

    def save_checkpoint(
        self,
        local_path: str,
        hdfs_path: str | None = None,
        global_step: int = 0,
        max_ckpt_to_keep: int | None = None,
    ) -> None:
        """Write everything that `save_contents` names; older checkpoints beyond `max_ckpt_to_keep` go."""
        self.previous_global_step = global_step
        folder = Path(local_path)
        if self.rank == 0:
            self.ensure_checkpoint_capacity(max_ckpt_to_keep)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)
        dist.barrier()
        if self.should_save_model or self.should_save_optimizer:
            from deepspeed.checkpoint.constants import (
                UNIVERSAL_CHECKPOINT_INFO,
                UNIVERSAL_CHECKPOINT_VERSION_KEY,
                UNIVERSAL_CHECKPOINT_VERSION_VALUE,
            )

            universal = {UNIVERSAL_CHECKPOINT_VERSION_KEY: UNIVERSAL_CHECKPOINT_VERSION_VALUE}
            self.model.save_checkpoint(
                str(folder), tag=NATIVE, client_state={UNIVERSAL_CHECKPOINT_INFO: universal}, save_latest=False
            )
        if self.should_save_extra:
            # Not in DeepSpeed's client state: a key named lr_scheduler is swallowed there (engine.py:4713).
            schedule = self.lr_scheduler.state_dict() if self.lr_scheduler is not None else None
            torch.save({"lr_scheduler": schedule, "rng": self.get_rng_state()}, self._extra(folder, self.world_size))
        self._save_huggingface(folder / "huggingface")
        dist.barrier()
        if self.rank == 0:
            write_json(folder / MANIFEST, self._manifest())
            self.register_checkpoint(local_path, max_ckpt_to_keep)
        dist.barrier()

    def _manifest(self) -> dict[str, Any]:
        import deepspeed

        return {
            "deepspeed": deepspeed.__version__,
            "world_size": self.world_size,
            "zero_stage": self.model.zero_optimization_stage(),
            "bf16": bool(self.model.bfloat16_enabled()),
        }

    def _extra(self, folder: Path, world_size: int, rank: int | None = None) -> Path:
        return folder / f"extra_state_world_size_{world_size}_rank_{self.rank if rank is None else rank}.pt"

    def _save_huggingface(self, folder: Path) -> None:
        """Config and tokenizer, and the whole fp32 weights if `save_contents` has hf_model."""
        model = self.model.module
        state: dict[str, torch.Tensor] = {}
        if self.should_save_hf_model:
            for name, tensor in master_weights(model):  # all ranks take part, the first keeps
                if self.rank == 0:
                    state[name] = tensor
        if self.rank != 0:
            return
        publish_folder(model, state, self.processing_class, folder)

    # --- load ---

    def load_checkpoint(
        self, local_path: str | None, hdfs_path: str | None = None, del_local_after_load: bool = False
    ) -> None:
        """Restore weights, optimizer, LR schedule and random generators.

        TagprError, on every rank: not a checkpoint of this engine, another ZeRO stage or dtype, or another world
        size while universal checkpoints are switched off.
        """
        if local_path is None:
            return
        folder = Path(local_path)
        saved = self._checked_manifest(folder)
        if saved["world_size"] == self.world_size:
            loaded = self._load_states(folder, NATIVE)
        else:
            scratch = folder.with_name(f".{folder.name}.{UNIVERSAL}")
            try:
                self._convert(folder, scratch)
                loaded = self._load_states(scratch, UNIVERSAL)
                dist.barrier()
            finally:
                if self.rank == 0:
                    shutil.rmtree(scratch, ignore_errors=True)
        if loaded is None:
            raise TagprError(f"{folder / NATIVE}: DeepSpeed found no checkpoint there; remove {folder} to start over")
        if self.should_load_extra:
            self._load_extra(folder, saved["world_size"])
        dist.barrier()

    def _load_states(self, folder: Path, tag: str) -> str | None:
        """Weights and optimizer from `folder/tag`; None if there are none."""
        config = self.model._config
        config.load_universal_checkpoint = tag == UNIVERSAL
        try:
            loaded, _ = self.model.load_checkpoint(
                str(folder),
                tag=tag,
                load_optimizer_states=self.should_load_optimizer,
                load_lr_scheduler_states=False,
                load_module_only=not self.should_load_optimizer,
            )
        finally:
            config.load_universal_checkpoint = False
        return loaded

    def _checked_manifest(self, folder: Path) -> dict[str, Any]:
        path = folder / MANIFEST
        if not path.is_file():
            raise TagprError(
                f"{folder} is not a complete checkpoint of strategy 'deepspeed' ({MANIFEST} is missing); go on with "
                "the strategy that wrote it, or start the stage over"
            )
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        mine = self._manifest()
        for key in ("zero_stage", "bf16"):
            if saved[key] != mine[key]:
                raise TagprError(
                    f"{path}: {key} is {saved[key]} in the checkpoint and {mine[key]} in the recipe; "
                    "go on with the value that wrote it, or start the stage over"
                )
        if saved["world_size"] != mine["world_size"] and not self.convert_other_world_size:
            raise TagprError(
                f"{path}: written by {saved['world_size']} processes, now {mine['world_size']}; "
                "set deepspeed.universal_checkpoints: true to convert it"
            )
        return saved

    def _load_extra(self, folder: Path, saved_world: int) -> None:
        """The schedule is the same on every rank; a rank that did not exist keeps its fresh generators."""
        own = self._extra(folder, saved_world)
        state = torch.load(own if own.is_file() else self._extra(folder, saved_world, 0), weights_only=False)
        if own.is_file():
            self.load_rng_state(state["rng"])
        if state["lr_scheduler"] is not None and self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])

    def _convert(self, folder: Path, scratch: Path) -> None:
        """Convert to `scratch/universal` on the first rank, while the others wait."""
        problem: list[str | None] = [None]
        # A group of its own: the default one gives up after minutes, and the conversion of a large model takes longer.
        group = dist.new_group(backend="gloo", timeout=CONVERSION_LIMIT)
        if self.rank == 0:
            problem[0] = convert_to_universal(folder / NATIVE, scratch)
        dist.broadcast_object_list(problem, src=0, group=group)
        dist.destroy_process_group(group)
        if problem[0] is not None:
            raise TagprError(f"{folder}: the conversion for another world size failed: {problem[0]}")


def convert_to_universal(source: Path, scratch: Path) -> str | None:
    """Run DeepSpeed's converter in a process of its own, to `scratch/universal`. Returns the error, if any."""
    shutil.rmtree(scratch, ignore_errors=True)
    workers = str(max(1, min(8, (os.cpu_count() or 2) // 2)))
    command = [
        sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(source),
        "--output_folder", str(scratch / UNIVERSAL), "--num_extract_workers", workers, "--num_merge_workers", workers,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DS_ACCELERATOR": "cpu"})
    return None if done.returncode == 0 else done.stderr.strip()[-600:] or f"exit code {done.returncode}"


def publish_folder(model: Any, state: dict[str, torch.Tensor], tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder: config and tokenizer, and `state` (whole fp32 tensors) if there is one."""
    from accelerate import init_empty_weights

    folder.mkdir(parents=True, exist_ok=True)
    config = type(model.config).from_dict(model.config.to_dict())
    config.dtype = torch.float32
    if state:
        with init_empty_weights():
            empty = type(model)(config)
        if getattr(model, "generation_config", None) is not None:
            empty.generation_config = model.generation_config
        empty.save_pretrained(folder, state_dict=state)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
