"""Training PRMU on a toy task: it learns, for new users too, and forgets when the users are shuffled."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prmu_toy import toy_backbone, toy_pairs

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from tagpr_rl.prmu.accuracy import own  # noqa: E402
from tagpr_rl.prmu.model import new_model  # noqa: E402
from tagpr_rl.prmu.serving.score import Scorer  # noqa: E402
from tagpr_rl.prmu.training.config import PrmuConfig  # noqa: E402
from tagpr_rl.prmu.training.preferences import split_by_user, users_of  # noqa: E402
from tagpr_rl.prmu.training.step import batch_loss, build_optimizer, learning_rate_scale  # noqa: E402
from tagpr_rl.prmu.training.train import batches, train_prmu  # noqa: E402
from tagpr_rl.prmu.users.vectors import UserTable  # noqa: E402
from tagpr_rl.types import TagprError  # noqa: E402

SHORT = PrmuConfig(steps=3, batch_size=4, lr=1e-3, head_lr=1e-3, heads=2, warmup=1, user_dropout=0.0, device="cpu")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_backbone(tmp_path_factory.mktemp("backbone"))


def test_it_learns_the_user_and_nothing_else(backbone: Path, tmp_path: Path) -> None:
    config = replace(SHORT, steps=60, batch_size=16, lr=3e-3, head_lr=3e-3, warmup=5, user_dropout=0.5)
    seen: list[dict[str, float]] = []
    metrics = train_prmu(toy_pairs(users=64), backbone=backbone, out=tmp_path, config=config, on_step=seen.append)
    assert metrics["unseen/cross_profile"] >= 0.9
    assert metrics["seen/cross_profile"] >= 0.9
    assert 0.25 <= metrics["unseen/shuffled"] <= 0.75  # chance; few pairs
    assert 0.25 <= metrics["unseen/generic"] <= 0.75
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert log == seen
    assert [row["step"] for row in log] == list(range(1, 61))
    # Statistics are fixed on the held-out pairs, so the mean score of those lies near the middle.
    split = split_by_user(toy_pairs(users=64), seed=config.seed)
    scorer = Scorer(tmp_path)
    raw = scorer.raw([r for p in (*split.seen, *split.unseen) for r in own(p)])
    assert scorer.model.config.score_mean == pytest.approx(sum(raw) / len(raw), abs=1e-5)
    assert set(scorer.model.table.ids) == users_of(split.train)


def test_sharded_training_is_plain_training(backbone: Path, tmp_path: Path) -> None:
    pairs, unseen = toy_pairs(users=8)[:12], [replace(p, user_id="new", other_user_id="x") for p in toy_pairs(8)[20:]]
    got: list[dict[str, float]] = []
    train_prmu(pairs, backbone=backbone, out=tmp_path, config=SHORT, on_step=got.append, validation=unseen)
    model, encoder = new_model(backbone, SHORT.model(), UserTable(sorted(users_of(pairs))))
    model.train()
    optimizer = build_optimizer(model, SHORT)
    for step, indices in enumerate(batches(len(pairs), 4, 3, SHORT.seed)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * learning_rate_scale(step, 3, 1)
        loss, _ = batch_loss(model, encoder, [pairs[i] for i in indices], SHORT)
        assert float(loss.total.detach()) == pytest.approx(got[step]["loss"], abs=1e-5)
        loss.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), SHORT.grad_clip)
        assert float(norm) == pytest.approx(got[step]["grad_norm"], rel=1e-4)
        optimizer.step()
        optimizer.zero_grad()


def test_micro_batches_and_seed_change_nothing(backbone: Path, tmp_path: Path) -> None:
    runs = []
    for i, size in enumerate((0, 0, 1)):
        rows: list[dict[str, float]] = []
        config = replace(SHORT, micro_batch_size=size)
        train_prmu(toy_pairs(8), backbone=backbone, out=tmp_path / str(i), config=config, on_step=rows.append)
        runs.append([row["loss"] for row in rows])
    assert runs[0] == runs[1]
    assert runs[2] == pytest.approx(runs[0], abs=1e-5)


def test_early_stop_keeps_the_best(backbone: Path, tmp_path: Path) -> None:
    config = replace(SHORT, steps=40, lr=1e-9, head_lr=1e-9, eval_every=1, patience=2)
    metrics = train_prmu(toy_pairs(8), backbone=backbone, out=tmp_path, config=config)
    assert metrics["steps"] == 3  # the first is the best; two more bring nothing


def test_leakage_stops_training(backbone: Path, tmp_path: Path) -> None:
    pairs = toy_pairs(8)
    with pytest.raises(TagprError, match="in validation and also in training"):
        train_prmu(pairs, backbone=backbone, out=tmp_path, config=SHORT, validation=pairs[:1])


def test_schedule_by_hand() -> None:
    assert [learning_rate_scale(s, 10, 2) for s in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert learning_rate_scale(6, 10, 2) == pytest.approx(0.05 + 0.95 * 0.5)  # half-way: cos(pi / 2) = 0
    assert learning_rate_scale(10, 10, 2) == pytest.approx(0.05)
    assert math.isclose(learning_rate_scale(0, 5, 0), 1.0)


def test_batches_are_whole_passes() -> None:
    drawn = [i for batch in batches(5, 4, 5, seed=3) for i in batch]
    assert all(sorted(drawn[k : k + 5]) == [0, 1, 2, 3, 4] for k in range(0, 20, 5))
    assert drawn != [i for batch in batches(5, 4, 5, seed=4) for i in batch]


class Folder:
    """Step checkpoints as training sees them: whole or not there."""

    every = 2

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """Renamed when whole; only the newest stays."""
        temp = self.root / "temp"
        temp.mkdir(parents=True)
        yield temp
        if (old := self.newest()) is not None:
            shutil.rmtree(old)
        temp.rename(self.root / f"step_{step}")

    def newest(self) -> Path | None:
        """The one that is there."""
        return next(self.root.glob("step_*"), None)


class Killed(Exception):
    """Stands for the end of the process."""


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(backbone: Path, tmp_path: Path) -> None:
    config = replace(SHORT, steps=7, user_dropout=0.5, eval_every=3, patience=5)
    pairs = toy_pairs(users=8)
    whole: list[dict[str, float]] = []
    expected = train_prmu(pairs, backbone=backbone, out=tmp_path / "whole", config=config, on_step=whole.append)

    def until(step: int) -> None:
        def on_step(row: dict[str, float]) -> None:
            if row["step"] == step:
                raise Killed

        train_prmu(
            pairs, backbone=backbone, out=tmp_path / "cut", config=config, on_step=on_step,
            checkpoints=Folder(tmp_path / "steps"),
        )  # fmt: skip

    for step in (3, 6):
        with pytest.raises(Killed):
            until(step)
    assert Folder(tmp_path / "steps").newest() == tmp_path / "steps" / "step_4"
    rest: list[dict[str, float]] = []
    got = train_prmu(
        pairs, backbone=backbone, out=tmp_path / "cut", config=config, on_step=rest.append,
        checkpoints=Folder(tmp_path / "steps"),
    )  # fmt: skip
    assert [row["step"] for row in rest] == [5, 6, 7]
    for mine, reference in zip(rest, whole[4:], strict=True):
        assert {k: v for k, v in mine.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in reference.items() if k != "seconds"}, abs=1e-6
        )
    logged = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 5, 6, 7]
    same = {key for key in expected if key != "train_seconds"}
    assert {key: got[key] for key in same} == pytest.approx({key: expected[key] for key in same}, abs=1e-5)


@pytest.mark.parametrize("user", ["identity", "text", "generic"])
def test_baselines_train_behind_the_same_interface(backbone: Path, tmp_path: Path, user: str) -> None:
    metrics = train_prmu(toy_pairs(8), backbone=backbone, out=tmp_path, config=replace(SHORT, user=user))
    scorer = Scorer(tmp_path)
    assert scorer.model.config.user == user
    assert bool(scorer.model.table.ids) is (user == "identity")
    if user != "text":  # they know nothing of a user whom training does not show
        assert metrics["unseen/accuracy"] == metrics["unseen/generic"]


def test_recomputation_keeps_a_fraction_and_changes_no_gradient(tmp_path: Path) -> None:
    """Without it every block keeps its inner states, and each of the two mixes its normalised layers."""
    deep = toy_backbone(tmp_path, layers=12)
    gradients, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model, encoder = new_model(deep, SHORT.model(), UserTable())
        if recompute:
            model.recompute()
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.train()
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = batch_loss(model, encoder, toy_pairs(8), SHORT)
        loss.total.backward()
        kept.append(sum(size for key, size in saved.items() if key not in weights))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert kept[1] < 0.35 * kept[0]
    assert set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, atol=1e-7), name
