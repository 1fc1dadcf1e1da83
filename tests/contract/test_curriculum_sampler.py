"""The curriculum on verl's data loader: its state is saved with the loader's, and the trainer's hook teaches it."""

from __future__ import annotations

import inspect
import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch]
ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"user_id": f"u{i % 3}", "task": f"LaMP_{i % 2 + 1}"} for i in range(12)]


class Rows(list[int]):
    """A dataset of its indices, with verl's table of rows."""

    dataframe: Any = {"extra_info": ROWS}  # noqa: RUF012


def loader(**more: Any) -> Any:
    from omegaconf import OmegaConf
    from torchdata.stateful_dataloader import StatefulDataLoader

    from tagpr_rl.backend.trainer.hooks.curriculum import rl_sampler

    config = OmegaConf.create({"shuffle": True, "seed": 3, "train_batch_size": 4, **more})
    rows = Rows(range(12))
    return StatefulDataLoader(rows, batch_size=4, drop_last=True, sampler=rl_sampler(config, rows))


def taught(names: str) -> Any:
    """The loader of a trainer whose hook has learned `names`: question and reward a response; m masked, p padding."""
    from tagpr_rl.backend.trainer.hooks.curriculum import CurriculumHooks

    class Verl:
        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            return batch

        def _step_responses(self, batch: Any) -> Any:
            words = names.split()
            status = ["masked" if word[-1] == "m" else "scored" for word in words]
            return [
                SimpleNamespace(
                    group=word[0], info=ROWS[int(word[0])],
                    scored=SimpleNamespace(row={"total": float(word[1]), "prmu_status": own}),
                )
                for word, own in zip(words, status, strict=True)
            ]  # fmt: skip

    trainer = type("Trainer", (CurriculumHooks, Verl), {})()
    trainer.train_dataloader = loader(curriculum={"floor": 0.1})
    batch = SimpleNamespace(tags=[{"is_padding": word[-1] == "p"} for word in names.split()])
    assert trainer._compute_advantage(batch, {}) is batch
    return trainer.train_dataloader


def test_the_hook_learns_the_rewards_that_count() -> None:
    curriculum = taught("00 01 10 10 01m 09p").sampler.curriculum
    cells = {(user, task): (mean, count) for user, task, mean, count in curriculum.state()["cells"]}
    assert cells == {("u0", "LaMP_1"): (0.25, 1), ("u1", "LaMP_2"): (0.0, 1)}


def test_a_resumed_loader_draws_on_as_the_saved_one() -> None:
    import torch

    saved = taught("00 01 10 10")
    batches = iter(saved)
    for _ in range(4):  # past one pass: the loader has no end
        next(batches)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    resumed = loader(curriculum={"floor": 0.1})
    resumed.load_state_dict(torch.load(file, weights_only=False))
    again = iter(resumed)
    expected = [next(batches).tolist() for _ in range(6)]
    assert [next(again).tolist() for _ in range(6)] == expected
    assert resumed.sampler.curriculum.state() == saved.sampler.curriculum.state()


def test_without_the_block_the_sampler_is_verl_s_and_verl_finds_ours_by_name() -> None:
    from verl.trainer.ppo.utils import create_rl_sampler
    from verl.trainer.ppo.v1 import trainer_base

    from tagpr_rl.backend.trainer.trainers import TagprSeparateTrainer, TagprTrainer

    plain = loader()
    reference = create_rl_sampler(plain_config(), Rows(range(12)))
    assert list(plain.sampler) == list(reference)
    assert "sampler=create_rl_sampler(self.config.data" in inspect.getsource(trainer_base.PPOTrainer._init_dataloader)
    for trainer in (TagprTrainer, TagprSeparateTrainer):
        names = [base.__name__ for base in trainer.__mro__]
        assert names.index("CurriculumHooks") < names.index("RewardHooks")


def test_the_key_reaches_the_data_loader_and_two_ways_to_choose_questions_are_refused() -> None:
    from tagpr_rl.backend.trainer.overrides import StagePaths, compose, grpo_overrides
    from tagpr_rl.config import load_recipe
    from tagpr_rl.types import TagprError

    paths = StagePaths(model=Path("/m"), train=Path("/t"), checkpoints=Path("/c"), rollouts=Path("/r"))
    recipe = load_recipe(ROOT / "recipes/smoke.yaml", ["stages.guided.curriculum.floor=0.25"])
    assert compose("ppo_trainer", grpo_overrides(recipe, "guided", paths)).data.curriculum.floor == 0.25
    assert "+data.curriculum.floor" not in grpo_overrides(recipe, "explore", paths)
    for other in ("advantage.zero_variance=resample", "rollouts_from=guided"):
        keys = ["stages.explore.curriculum.floor=0.25", f"stages.explore.{other}"]
        with pytest.raises(TagprError, match="both choose the questions"):
            load_recipe(ROOT / "recipes/smoke.yaml", keys)


def plain_config() -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.create({"shuffle": True, "seed": 3, "train_batch_size": 4})
