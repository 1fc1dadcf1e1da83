"""verl's reward plug point: awaits the PRMU actor and the tag-checker actor, returns every component.

Configured by `reward.reward_manager.source=importlib` (verl/trainer/ppo/reward.py:96). What the
manager needs travels in `reward.reward_kwargs`, which verl passes through unread.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from tagpr_rl.prmu.requests import ScoreRequest


class TagprRewardManager(RewardManagerBase):
    """One response -> `reward_score` and `reward_extra_info` (the same keys for every response)."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_unused: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        settings = config.reward.reward_kwargs
        self.timeout_s = float(settings.prmu_timeout_s)
        self.checker = ray.get_actor(settings.tag_checker)
        self.prmu = ray.get_actor(settings.prmu) if settings.prmu else None

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one response. Malformed text gets a status; a dead or failing actor raises."""
        item = data[-1]
        response = self._response_text(item)
        info = item.non_tensor_batch["extra_info"]  # verl reuses this dict: read, never change it
        score, status = await self._prmu_score(info, response)
        row = await self.checker.score.remote(response, info["task"], info["gold"], score, status)
        return {"reward_score": row["total"], "reward_extra_info": row}

    def _response_text(self, item: Any) -> str:
        # verl's own managers decode the same way; our tags are ordinary tokens, so they survive it.
        ids = item.batch["responses"]
        valid = int(item.batch["attention_mask"][-ids.shape[-1] :].sum())
        return str(self.tokenizer.decode(ids[:valid], skip_special_tokens=True))

    async def _prmu_score(self, info: dict[str, Any], response: str) -> tuple[float | None, str]:
        """The PRMU score in [0, 1] and its status: "scored", "off", or "masked" after a time-out."""
        if self.prmu is None:
            return None, "off"
        request = ScoreRequest(
            user_id=info["user_id"],
            profile_texts=tuple(info["profile_texts"]),
            question=info["question"],
            response=response,
        )
        try:
            score = await asyncio.wait_for(self.prmu.score.remote(request), self.timeout_s)
        except TimeoutError:
            return None, "masked"
        return float(score), "scored"
