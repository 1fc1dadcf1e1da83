"""The order of a stage's questions on verl's data loader: verl's own, or a curriculum that learns from the rewards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler
from verl.trainer.ppo.utils import create_rl_sampler

from tagpr_rl.prompts.curriculum import Cell, Curriculum


class CurriculumSampler(Sampler[int]):
    """Draws from a `Curriculum` without an end. Its state is in the data loader's, which verl saves (data.pt)."""

    def __init__(self, curriculum: Curriculum, size: int) -> None:
        self.curriculum, self._size = curriculum, size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        while True:
            yield self.curriculum.draw()

    def state_dict(self) -> dict[str, Any]:
        """For torchdata's stateful loader."""
        return self.curriculum.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """For torchdata's stateful loader."""
        self.curriculum.load(state_dict)


def rl_sampler(data_config: Any, dataset: Any) -> Any:
    """Stands for verl's `create_rl_sampler` (trainer_base.py:638 calls it by name): the curriculum if there is one."""
    settings = data_config.get("curriculum")
    if settings is None:
        return create_rl_sampler(data_config, dataset)
    cells: list[Cell] = [(info["user_id"], info["task"]) for info in dataset.dataframe["extra_info"]]
    spacing, seed = int(data_config.train_batch_size), int(data_config.seed)
    curriculum = Curriculum(cells, floor=float(settings.floor), spacing=spacing, seed=seed)
    return CurriculumSampler(curriculum, len(cells))


class CurriculumHooks:
    """For a V1 trainer, before RewardHooks: a curriculum learns each batch's rewards before the step is saved."""

    train_dataloader: Any

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """verl's, then `Curriculum.learn` with the groups' rewards. Failed and unscored responses have none."""
        batch = super()._compute_advantage(batch, metrics)  # type: ignore[misc]
        sampler = self.train_dataloader.sampler
        if isinstance(sampler, CurriculumSampler):
            cells: dict[str, Cell] = {}
            rewards: dict[str, list[float]] = defaultdict(list)
            for response, tag in zip(self._step_responses(batch), batch.tags, strict=True):  # type: ignore[attr-defined]
                row, info = response.scored.row, response.info
                if not tag.get("is_padding", False) and row["prmu_status"] != "masked":
                    cells[response.group] = (info["user_id"], info["task"])
                    rewards[response.group].append(float(row["total"]))
            sampler.curriculum.learn((cells[group], sorted(own)) for group, own in rewards.items())
        return batch
