"""Saves of verl's trainers go through a temporary folder, are hashed, and get their name when they are whole.

verl 0.9.1 writes straight into `global_step_N`, deletes older ones before the new one is known to be whole,
and writes the pointer without sync (trainer_base.py:948, checkpoint_handler.py:108). Here verl writes below
`checkpoints.staging`, and `checkpoints.publish` does the rest.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from verl.utils.checkpoint import CheckpointHandler

from tagpr_rl.run import checkpoints
from tagpr_rl.types import TagprError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_TORCH_WRITE_FAILED = ("PytorchStreamWriter failed", "unexpected pos", "inline_container", "iostream error")
"""How torch.save says that a write failed: no errno survives its zip writer."""


@contextmanager
def saving(root: Path, step: int, identity: checkpoints.Identity) -> Iterator[Path]:
    """Yield the folder to save below. A save that fails is removed, and the error names the last good one."""
    staging = checkpoints.staging(root, identity)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        yield staging
    except Exception as error:
        free = shutil.disk_usage(root).free
        shutil.rmtree(staging, ignore_errors=True)
        raise save_error(error, root, step, free) from error


def save_error(error: BaseException, root: Path, step: int, free: int) -> BaseException:
    """A clear TagprError if a save failed because the disk is full or broken; else `error` itself."""
    text = str(error)
    number = next((e.errno for e in _chain(error) if isinstance(e, OSError) and e.errno is not None), None)
    full = number in _NO_SPACE or "No space left" in text or "quota exceeded" in text
    if not full and number is None and not any(words in text for words in _TORCH_WRITE_FAILED):
        return error
    good = checkpoints.steps(root)
    last = f"the last good checkpoint is {checkpoints.step_folder(root, good[-1])}" if good else "there is none before"
    why = "the disk is full" if full else f"the disk refused it ({text.splitlines()[-1][:200]})"
    return TagprError(
        f"saving the checkpoint of step {step} in {root} failed: {why}, {free / 2**20:.0f} MiB were free. "
        f"Nothing of it was kept; {last}. Free some space and resume the run."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its causes, and the errors that Ray wrapped."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__


class StagedCheckpointHandler(CheckpointHandler):
    """verl's SFT checkpoint handler (every rank has one), saving through the staging folder.

    All processes must see the same folder: the run directory is on shared storage.
    """

    default_local_dir: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._root = Path(self.default_local_dir)
        self._identity = checkpoints.current(self._root)
        self.max_ckpt_to_keep = None  # `checkpoints.retain` decides, after the new one is whole

    def save_checkpoint(self, step: int) -> None:
        with saving(self._root, step, self._identity) as staging:
            self.default_local_dir = str(staging)
            try:
                super().save_checkpoint(step)
            finally:
                self.default_local_dir = str(self._root)
            if self.rank == 0:
                folder = checkpoints.step_folder(staging, step)
                require_all_ranks(folder, dist.get_world_size())
                checkpoints.seal(folder, step, self._identity)
                publish(self._root, step, self._identity)
        dist.barrier()

    def _load_dataloader_state(self, checkpoint_path: str) -> None:
        """verl's; from a checkpoint of another number of processes the data go on at the same place."""
        saved, now = len(list(Path(checkpoint_path).glob("data_*.pt"))), self.engine.get_data_parallel_size()
        if saved in (0, now):
            super()._load_dataloader_state(checkpoint_path)
            return
        state = torch.load(Path(checkpoint_path) / "data_0.pt", weights_only=False)
        self.train_dataloader.load_state_dict(data_state(state, saved, now))


def data_state(state: Mapping[str, Any], saved: int, now: int) -> dict[str, Any]:
    """The loader's state for `now` processes after the steps of one of `saved`. Their batches together are the step's
    in either case, so a process has seen as many batches, of another size."""
    sampler = state.get("_sampler_iter_state")
    if sampler is None:
        return dict(state)
    return {**state, "_sampler_iter_state": {**sampler, "samples_yielded": sampler["samples_yielded"] * saved // now}}


def publish(root: Path, step: int, identity: checkpoints.Identity, spared: Collection[int] = ()) -> None:
    """`checkpoints.publish`, or an error if another attempt has replaced this one."""
    if not checkpoints.publish(root, step, identity, spared):
        raise TagprError(f"another process has resumed the stage of {root}; this one stops at step {step}")


def require_all_ranks(folder: Path, world_size: int) -> None:
    """TagprError unless the model shards of all ranks are in the folder (fsdp2's file names)."""
    shards = list(folder.rglob(f"model_world_size_{world_size}_rank_*.pt"))
    if shards and len(shards) != world_size:
        raise TagprError(
            f"{len(shards)} of {world_size} processes saved into {folder}; the others have another disk there. "
            "Put the run on storage that all nodes share (out=<shared folder>)."
        )


class CheckpointHooks:
    """For a V1 trainer: a save becomes visible when it is whole (trainer_base.py:948 writes in place)."""

    config: Any
    logger: Any
    global_steps: int

    def _load_checkpoint(self) -> None:
        self._checkpoints = Path(self.config.trainer.default_local_dir)
        self._identity = checkpoints.current(self._checkpoints)
        super()._load_checkpoint()  # type: ignore[misc]

    def _save_checkpoint(self) -> None:
        """verl's save, in the staging folder; published once the step's metrics row is on disk.

        `fit` saves before it logs: a run killed in between would otherwise resume after a step without a row.
        """
        step, trainer = self.global_steps, self.config.trainer
        with saving(self._checkpoints, step, self._identity) as staging:
            trainer.default_local_dir = str(staging)
            try:
                super()._save_checkpoint()  # type: ignore[misc]
            finally:
                trainer.default_local_dir = str(self._checkpoints)
            folder = checkpoints.step_folder(staging, step)
            require_all_ranks(folder, trainer.nnodes * trainer.n_gpus_per_node)
            checkpoints.seal(folder, step, self._identity)
        self.logger.after_row(step, lambda: publish(self._checkpoints, step, self._identity, self.spared_steps()))

    def spared_steps(self) -> set[int]:
        """Steps whose checkpoints stay although newer ones are there."""
        return set()
