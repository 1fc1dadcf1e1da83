"""Scoring with a trained PRMU: micro-batches by padded tokens, and a cache of encoded profile items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from tagpr_rl.prmu.inputs import ResponseIds, TextEncoder, collate_responses, pad
from tagpr_rl.prmu.model import DTYPES, PrmuModel
from tagpr_rl.prmu.serving.cache import ArrayCache
from tagpr_rl.prmu.serving.requests import ScoreRequest, check_request
from tagpr_rl.types import TagprError

__all__ = ["ScoreRequest", "Scorer", "micro_batches"]


def micro_batches(lengths: Sequence[int], max_padded: int) -> list[list[int]]:
    """Split indices into batches of similar length whose rows * longest row stays within `max_padded`.

    A row longer than `max_padded` is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= max_padded:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class Scorer:
    """A PRMU on one device. Not thread-safe: call it from one thread."""

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        *,
        max_padded_tokens: int = 32_768,
        cached_items: int = 200_000,
        cache_mb: float = 512.0,
        dtype: str | None = None,
    ) -> None:
        """Load the PRMU folder `path`. TagprError names the tensor if a weight is not finite.

        `dtype`: what the backbone computes in, "bfloat16" (its weights, too) or "float32"; None = as in training.

        The states of the profile items used last are cached: at most `cached_items`, and at most `cache_mb` MiB.
        """
        model, encoder = PrmuModel.from_pretrained(path)
        check_finite(model, path)
        if dtype is not None:
            model.config = replace(model.config, dtype=dtype)
            model.backbone.to(DTYPES[dtype])
        self._set(model, encoder, device, path, max_padded_tokens, cached_items, cache_mb)

    @classmethod
    def of(
        cls, model: PrmuModel, encoder: TextEncoder, device: str = "cpu", *, max_padded_tokens: int = 32_768
    ) -> Self:
        """A scorer of a model that is already in memory."""
        scorer = cls.__new__(cls)
        scorer._set(model, encoder, device, Path("memory"), max_padded_tokens, 200_000, 512.0)
        return scorer

    def _set(
        self,
        model: PrmuModel,
        encoder: TextEncoder,
        device: str,
        path: Path,
        max_padded: int,
        cached: int,
        cache_mb: float,
    ) -> None:
        self.device = torch.device(device)
        self.model, self.encoder = model.to(self.device), encoder
        self.path, self.max_padded_tokens = path, max_padded
        self._cache: ArrayCache[Tensor] = ArrayCache(cached, int(cache_mb * (1 << 20)))
        self._cached_for = self._versions()

    def _versions(self) -> tuple[int, ...]:
        """Changes whenever a weight is updated in place (an optimizer's step, load_state_dict) or replaced.

        It does not change on a write through `parameter.data`, which torch does not count; call `forget` then.
        """
        return tuple(x for weight in self.model.parameters() for x in (id(weight), weight._version))

    def forget(self) -> None:
        """Drop the cached item states, which belong to the weights that made them."""
        self._cache.clear()
        self._cached_for = self._versions()

    @property
    def cached(self) -> tuple[int, int]:
        """(number of items, bytes) in the cache."""
        return len(self._cache), self._cache.nbytes

    def length(self, request: ScoreRequest) -> int:
        """Number of tokens of the request's response row and profile, at least 1.

        TagprError on a field of the wrong type.
        """
        check_request(request)
        return len(self.encoder.row(request).ids) + sum(map(len, self.encoder.profile(request)))

    def score(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Scores in [0, 1]: sigmoid((raw - mean) / std), with statistics fixed when PRMU was trained."""
        config = self.model.config
        return [_sigmoid((raw - config.score_mean) / config.score_std) for raw in self.raw(requests)]

    def score_each(self, requests: Sequence[ScoreRequest]) -> list[float | Exception]:
        """As `score`, but a score that is not finite is replaced by a FloatingPointError in the list."""
        config = self.model.config
        return [
            _sigmoid((raw - config.score_mean) / config.score_std)
            if math.isfinite(raw)
            else self._not_finite(request, raw)
            for request, raw in zip(requests, self._raw(requests), strict=True)
        ]

    def score_afresh(self, requests: Sequence[ScoreRequest]) -> list[float | Exception]:
        """As `score_each`, by no item states of earlier calls: these round by the batch that they were computed in.

        If a request is wrong, each one is scored alone, and the wrong one's exception stands in the list.
        """
        self.forget()
        try:
            return self.score_each(requests)
        except TagprError as error:
            if len(requests) == 1:
                return [error]
            return [outcome for request in requests for outcome in self.score_afresh([request])]

    def raw(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Raw scores, in the order of `requests`. FloatingPointError if one is not finite."""
        scores = self._raw(requests)
        for request, value in zip(requests, scores, strict=True):
            if not math.isfinite(value):
                raise self._not_finite(request, value)
        return scores

    def _not_finite(self, request: ScoreRequest, value: float) -> FloatingPointError:
        return FloatingPointError(
            f"PRMU in {self.path} gave {value} for user {request.user_id!r}, response "
            f"{request.response[:60]!r}; its weights are damaged or overflow"
        )

    @torch.inference_mode()
    def _raw(self, requests: Sequence[ScoreRequest]) -> list[float]:
        rows = [self.encoder.row(r) for r in map(check_request, requests)]
        profiles = [self.encoder.profile(r) for r in requests]
        known = self.model.table.rows([r.user_id for r in requests])
        scores = [math.nan] * len(rows)
        # the attention over a profile is the other large array, so its length counts too
        lengths = [len(row.ids) + sum(map(len, items)) for row, items in zip(rows, profiles, strict=True)]
        for batch in micro_batches(lengths, self.max_padded_tokens):
            values = self._run([rows[i] for i in batch], [profiles[i] for i in batch], [known[i] for i in batch])
            for i, value in zip(batch, values, strict=True):
                scores[i] = value
        return scores

    def _run(self, rows: list[ResponseIds], profiles: list[list[tuple[int, ...]]], known: list[int]) -> list[float]:
        states = self._item_states({item for items in profiles for item in items})
        distinct: dict[tuple[tuple[int, ...], ...], int] = {}  # a group's responses share one profile
        place = [distinct.setdefault(tuple(items), len(distinct)) for items in profiles]
        per_profile = [[states[item] for item in items] for items in distinct]
        width = max((sum(map(len, profile)) for profile in per_profile), default=0) or 1
        dim = self.model.proj.weight.shape[0]
        items = torch.zeros(len(distinct), width, dim, device=self.device)
        mask = torch.zeros(len(distinct), width, dtype=torch.bool, device=self.device)
        for i, profile in enumerate(per_profile):
            if profile:
                joined = torch.cat(profile)
                items[i, : len(joined)] = joined
                mask[i, : len(joined)] = True
        if len(distinct) < len(rows):
            index = torch.tensor(place, device=self.device)
            items, mask = items[index], mask[index]
        ids, text_mask, start = (x.to(self.device) for x in collate_responses(rows))
        users = torch.tensor(known, dtype=torch.long, device=self.device)
        scores, _ = self.model.scores(ids, text_mask, start, items, mask, users)
        return [float(score) for score in scores]

    def _item_states(self, wanted: set[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        """States `[length, 2 D]` of each item row: from the cache, else encoded and cached."""
        if self._versions() != self._cached_for:
            self.forget()
        cached = ((item, self._cache.get(item)) for item in wanted)
        state_of = {item: state for item, state in cached if state is not None}
        missing = sorted(item for item in wanted if item not in state_of)
        for batch in micro_batches([len(item) for item in missing], self.max_padded_tokens):
            ids, mask = (x.to(self.device) for x in pad([missing[i] for i in batch]))
            for i, state, keep in zip(batch, self.model.item_states(ids, mask), mask, strict=True):
                state_of[missing[i]] = state[keep].clone()
                self._cache.put(missing[i], state_of[missing[i]])
        return state_of


def check_finite(model: PrmuModel, path: Path) -> None:
    """TagprError naming the first tensor of `model`, read from `path`, that holds NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise TagprError(
                f"{path}: {name} holds values that are not finite; train PRMU again, or restore the folder"
            )


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
