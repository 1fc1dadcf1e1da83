"""Scores saved responses again, with the stage's PRMU in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.config.recipe import nearest
from tagpr_rl.files import read_parquet
from tagpr_rl.prmu.serving.score import Scorer, ScoreRequest
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.types import TagprError


def prmu_scores(recipe: Recipe, run: RunDir, name: str, lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """PRMU's score of each line's response, or the saved value if PRMU gave none. TagprError for a stage without
    PRMU."""
    stage = recipe.stages[name]
    assert isinstance(stage, GrpoStage)
    if stage.prmu is None or not stage.uses_prmu:
        raise TagprError(f"stage '{name}' does not use PRMU (its weight is 0); leave --prmu out")
    rows = stage_dir(recipe, run, name).root / "train.parquet"  # a stage with prompt rows of its own
    if not rows.is_file():
        prompts = nearest(recipe, name, "prompts")
        assert prompts is not None  # a recipe without one is refused
        rows = stage_dir(recipe, run, prompts).root / "train.parquet"
    wanted = {(line["task"], line["record_id"]) for line in lines}
    infos = {}
    for row in read_parquet(rows, ["extra_info"]):
        info = row["extra_info"]
        if (info["task"], info["record_id"]) in wanted:
            infos[info["task"], info["record_id"]] = info
    if missing := wanted - infos.keys():
        raise TagprError(f"{rows} has no prompt of record {sorted(missing)[0][1]}; the rollouts are another run's")
    scorer = Scorer(stage_dir(recipe, run, stage.prmu).root / "prmu")
    at = [i for i, line in enumerate(lines) if line["prmu_status"] == "scored"]
    scores = [float(line["reward_prmu"]) for line in lines]
    for i, score in zip(at, scorer.score([_request(infos, lines[i]) for i in at]), strict=True):
        scores[i] = score
    return scores


def _request(infos: Mapping[tuple[str, str], Mapping[str, Any]], line: Mapping[str, Any]) -> ScoreRequest:
    info = infos[line["task"], line["record_id"]]
    return ScoreRequest(
        user_id=info["user_id"],
        profile_texts=tuple(info["profile_texts"]),
        question=info["question"],
        response=line["response"],
    )
