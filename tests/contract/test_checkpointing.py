"""verl's saves through the staging folder: the hooks we use, its SFT handler for real, and how a full disk reads."""

from __future__ import annotations

import errno
import gc
import inspect
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.run import checkpoints
from tagpr_rl.types import TagprError

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch]


def test_verl_still_writes_in_place_and_logs_after_it_saved() -> None:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils.checkpoint import CheckpointHandler

    from tagpr_rl.backend.trainer.hooks.checkpoint import CheckpointHooks
    from tagpr_rl.backend.trainer.trainers import TagprTrainer

    save = inspect.getsource(PPOTrainer._save_checkpoint)
    assert save.count("self.config.trainer.default_local_dir") == 2  # the two places that staging redirects
    assert 'with open(local_latest_checkpointed_iteration, "w")' in save and "fsync" not in save
    fit = inspect.getsource(PPOTrainer.fit)
    assert fit.index("self._save_checkpoint()") < fit.index("self.logger.log(data=metrics, step=self.global_steps)")
    order = TagprTrainer.__mro__
    assert order.index(CheckpointHooks) < order.index(PPOTrainer)  # stop_hooks, before both, calls on
    assert {"_save_checkpoint", "_load_checkpoint"} <= set(vars(CheckpointHooks))
    handler = inspect.getsource(CheckpointHandler.save_checkpoint)
    assert 'os.path.join(self.default_local_dir, f"global_step_{step}")' in handler and "fsync" not in handler


@pytest.fixture
def one_process() -> Iterator[None]:
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Engine:
    """Saves a tensor, as an engine does."""

    def __init__(self, size: int) -> None:
        self.size = size

    def is_mp_src_rank_with_outputs(self) -> bool:
        return True

    def get_data_parallel_rank(self) -> int:
        return 0

    def get_data_parallel_size(self) -> int:
        return 1

    def save_checkpoint(self, local_path: str, **_: Any) -> None:
        import torch

        Path(local_path).mkdir(parents=True)
        torch.save({"w": torch.zeros(self.size)}, Path(local_path) / "model_world_size_1_rank_0.pt")

    def load_checkpoint(self, path: str) -> None:
        self.loaded = path


class Data:
    def state_dict(self) -> dict[str, int]:
        return {"at": 3}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.state = state


def handler(root: Path, engine: Engine) -> Any:
    from tagpr_rl.backend.trainer.hooks.checkpoint import StagedCheckpointHandler

    return StagedCheckpointHandler(engine=engine, train_dataloader=Data(), default_local_dir=str(root))


def test_verls_handler_saves_whole_checkpoints_and_loads_the_newest(tmp_path: Path, one_process: None) -> None:
    root = tmp_path / "checkpoints"
    checkpoints.begin(root, {"stage": "sft"}, keep=2)
    saver = handler(root, Engine(10))
    for step in (1, 2, 3):
        saver.save_checkpoint(step)
        assert checkpoints.steps(root)[-1] == step
    assert checkpoints.steps(root) == [2, 3]
    assert {p.name for p in (root / "global_step_3").iterdir()} == {
        "manifest.json", "data_0.pt", "model_world_size_1_rank_0.pt"
    }  # fmt: skip
    identity = checkpoints.begin(root, {"stage": "sft"}, keep=2)
    assert checkpoints.choose(root, identity).step == 3
    engine = Engine(10)
    loader = handler(root, engine)
    assert loader.load_checkpoint() == 3
    assert engine.loaded.endswith("checkpoints/global_step_3") and loader.train_dataloader.state == {"at": 3}
    with pytest.raises(TagprError, match="another process has resumed the stage"):
        saver.save_checkpoint(4)
    assert checkpoints.steps(root) == [2, 3]


@pytest.mark.parametrize("saved, now", [(2, 1), (1, 2)])
def test_the_data_go_on_at_the_same_place_for_another_number_of_processes(saved: int, now: int) -> None:
    """Steps of 8 of 64 examples: three with `saved` processes, and the fourth with `now`, each example once."""
    from torch.utils.data import DistributedSampler
    from torchdata.stateful_dataloader import StatefulDataLoader

    from tagpr_rl.backend.trainer.hooks.checkpoint import data_state

    def loader(world: int, rank: int) -> Any:
        sampler = DistributedSampler(range(64), num_replicas=world, rank=rank, seed=3, drop_last=True)  # type: ignore
        return StatefulDataLoader(list(range(64)), batch_size=8 // world, sampler=sampler, drop_last=True)

    before, state = [], {}
    for rank in range(saved):
        loaded = loader(saved, rank)
        batches = iter(loaded)
        before += [int(i) for _ in range(3) for i in next(batches)]
        state = state or loaded.state_dict()
    after = []
    for rank in range(now):
        loaded = loader(now, rank)
        loaded.load_state_dict(data_state(state, saved, now))
        after += [int(i) for batch in loaded for i in batch]
    assert sorted(before + after) == list(range(64)) and len(before) == 24


def test_a_full_disk_is_one_clear_error_and_the_last_good_state_stays(tmp_path: Path, one_process: None) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tagpr-test", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        root = disk / "checkpoints"
        checkpoints.begin(root, {"stage": "sft"}, keep=2)
        handler(root, Engine(10)).save_checkpoint(1)
        with pytest.raises(TagprError, match=r"saving the checkpoint of step 2 .* failed") as caught:
            handler(root, Engine(100_000)).save_checkpoint(2)  # 400 KB
        message = str(caught.value)
        assert "the last good checkpoint is" in message and "global_step_1" in message and "Free some space" in message
        del caught  # its frames hold torch's half-written file open
        gc.collect()
        assert checkpoints.choose(root, checkpoints.begin(root, {"stage": "sft"}, keep=2)).step == 1
        handler(root, Engine(10)).save_checkpoint(2)
        assert checkpoints.steps(root) == [1, 2]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_errors_that_are_not_the_disks_stay_what_they_are(tmp_path: Path) -> None:
    from tagpr_rl.backend.trainer.hooks.checkpoint import save_error

    mine = ValueError("a bug")
    assert save_error(mine, tmp_path, 3, 0) is mine
    wrapped = RuntimeError("task failed")
    wrapped.cause = OSError(errno.ENOSPC, "No space left on device")  # type: ignore[attr-defined]
    actual = save_error(wrapped, tmp_path, 3, 5 << 20)
    assert isinstance(actual, TagprError)
    assert "the disk is full, 5 MiB were free" in str(actual) and "there is none before" in str(actual)


def test_shards_that_lie_on_another_machine_are_noticed(tmp_path: Path) -> None:
    from tagpr_rl.backend.trainer.hooks.checkpoint import require_all_ranks

    for rank in (0, 1):
        (tmp_path / f"model_world_size_2_rank_{rank}.pt").touch()
        if rank == 0:
            with pytest.raises(TagprError, match="1 of 2 processes saved into"):
                require_all_ranks(tmp_path, 2)
    require_all_ranks(tmp_path, 2)


def test_an_error_keeps_its_words_through_ray(tmp_path: Path) -> None:
    """A worker's TagprError, through the task that waits for it, as `tagpr` gets it."""
    import ray

    from tagpr_rl.backend.session.ray_session import LOCAL_NODE_ADDRESS
    from tagpr_rl.stages.common import plain_error

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address=LOCAL_NODE_ADDRESS)
    try:

        @ray.remote(num_cpus=1)
        def worker() -> None:
            raise TagprError("the disk is full; free some")

        @ray.remote(num_cpus=1)
        def stage() -> None:
            ray.get(worker.remote())

        with pytest.raises(TagprError) as caught:
            ray.get(stage.remote())
        assert "Traceback" in str(caught.value) or "ray::" in str(caught.value)  # what Ray makes of it
        assert str(plain_error(caught.value)) == "the disk is full; free some"
    finally:
        ray.shutdown()
