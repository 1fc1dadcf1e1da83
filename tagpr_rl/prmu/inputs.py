"""From texts to padded tensors: what PRMU's model reads.

A response row is `question <eos> response <eos>`; an item row is `item <eos>`. Only the `text` baseline has the profile
in its response row, in front of the question. Rows are padded on the right, so that a causal backbone gives a token
the same state in any batch.

An unknown user or an empty profile is scored with e_0. If a profile has more than `max_items` items, the ones nearest
to the question (BM25) are read, in the profile's order. An item is cut to `max_item_tokens` tokens, and before that to
CHARACTERS_PER_TOKEN times as many characters; `Limits.max_tokens` cuts question and response. A lone half of a
surrogate pair becomes U+FFFD, which a tokenizer can read. A value that is no text is an error.
Shapes: R response rows, T tokens, B users, I distinct items, L item tokens, N items and M item states of a user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tagpr_rl.prmu.serving.requests import ScoreRequest
from tagpr_rl.prompts.retrieve import bm25_scores
from tagpr_rl.types import TagprError

CACHED_TEXTS = 50_000
"""Number of tokenised texts that an encoder caches."""
CACHED_PROFILES = 2_000
"""Number of choices of nearest items that an encoder caches."""
CHARACTERS_PER_TOKEN = 32
"""More characters than a token of natural text has; the text beyond is cut before the tokenizer reads it."""
RETRIEVED_CHARACTERS = 1000
"""Characters of an item, and of the question, that BM25 compares."""
PROFILES, ROWS, TEXT, NOTHING = "attention", "identity", "text", "generic"
"""Source of the user: attention over the profile, the identity table, the profile in the prompt, or none."""
USERS = (PROFILES, ROWS, TEXT, NOTHING)


@dataclass(frozen=True, slots=True)
class Limits:
    """Lengths beyond which text is cut."""

    max_tokens: int = 1024
    """Tokens of question and response together, `<eos>` included. The question's beginning is cut first."""
    max_items: int = 16
    """Profile items per user. Of more items those nearest to the question are read."""
    max_item_tokens: int = 128
    """Tokens of an item, `<eos>` included. Its end is cut."""

    def __post_init__(self) -> None:
        if self.max_tokens < 4 or self.max_items < 0 or self.max_item_tokens < 2:
            raise TagprError(
                f"PRMU: max_tokens {self.max_tokens} (least 4), max_items {self.max_items} (least 0) or "
                f"max_item_tokens {self.max_item_tokens} (least 2) is too small"
            )


@dataclass(frozen=True, slots=True)
class ResponseIds:
    """Tokens of one response row."""

    ids: tuple[int, ...]
    start: int
    """Index of the first response token; `start - 1` is the question's `<eos>`."""


class TextEncoder:
    """A tokenizer with PRMU's row format and limits."""

    def __init__(self, tokenizer: Any, limits: Limits, user: str = PROFILES) -> None:
        eos = tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise TagprError("PRMU: the tokenizer has no eos_token; set one in its tokenizer_config.json")
        self.tokenizer, self.limits, self.eos, self.user = tokenizer, limits, eos, user

        # The tokenizer without its Python layer, which takes five times as long for a short text.
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        if self._fast is not None:
            self._fast.no_truncation()
            self._fast.no_padding()
        self._cached_response = lru_cache(CACHED_TEXTS)(self._response)
        self._cached_question = lru_cache(CACHED_PROFILES)(self._ids)
        self._cached_item = lru_cache(CACHED_TEXTS)(self._item)
        self._cached_nearest = lru_cache(CACHED_PROFILES)(self._nearest)

    def _ids(self, text: str) -> list[int]:
        """Tokens of a text; halves of a surrogate pair are joined or become U+FFFD."""
        if not text.isascii():
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if self._fast is not None:
            return list(self._fast.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def row(self, request: ScoreRequest) -> ResponseIds:
        """The response row of a request."""
        if self.user != TEXT or not request.profile_texts:
            return self.response(request.question, request.response)
        plain = self.response(request.question, request.response)
        room = self.limits.max_tokens - len(plain.ids)
        items: list[tuple[int, ...]] = []
        for item in self.items(request.profile_texts, request.question):
            if len(item) > room:
                break
            items.insert(0, item)
            room -= len(item)
        before = tuple(token for item in items for token in item)
        return ResponseIds((*before, *plain.ids), len(before) + plain.start)

    def profile(self, request: ScoreRequest) -> list[tuple[int, ...]]:
        """The item rows that a request's user attends to; [] if PRMU does not attend to profiles."""
        return self.items(request.profile_texts, request.question) if self.user == PROFILES else []

    def response(self, question: str, response: str) -> ResponseIds:
        """One response row without a profile, cached."""
        return self._cached_response(question, response)

    def _response(self, question: str, response: str) -> ResponseIds:
        """At most `max_tokens`: the question loses its beginning first, then the response its end."""
        room = self.limits.max_tokens - 2
        most = room * CHARACTERS_PER_TOKEN
        answer = self._ids(response[:most])[:room]
        before = self._cached_question(question[-most:])
        before = before[max(0, len(before) - (room - len(answer))) :]
        return ResponseIds((*before, self.eos, *answer, self.eos), len(before) + 1)

    def item(self, text: str) -> tuple[int, ...]:
        """One item row, cached; () if the text has no tokens."""
        return self._cached_item(text[: self.limits.max_item_tokens * CHARACTERS_PER_TOKEN])

    def _item(self, text: str) -> tuple[int, ...]:
        """One item row of at most `max_item_tokens`; () if the text has no tokens."""
        most = self.limits.max_item_tokens
        ids = self._ids(text[: most * CHARACTERS_PER_TOKEN])[: most - 1]
        return (*ids, self.eos) if ids else ()

    def items(self, texts: Sequence[str], question: str = "") -> list[tuple[int, ...]]:
        """The rows of a profile's items that have tokens: of at most `max_items`, the nearest to the question."""
        if len(texts) > self.limits.max_items:
            texts = self._cached_nearest(tuple(texts), question)
        return [row for row in map(self.item, texts) if row]

    def _nearest(self, texts: tuple[str, ...], question: str) -> tuple[str, ...]:
        """`max_items` of the texts with the best BM25 scores (ties: the earlier), in the profile's order."""
        scores = bm25_scores([text[:RETRIEVED_CHARACTERS] for text in texts], question[-RETRIEVED_CHARACTERS:])
        best = sorted(range(len(texts)), key=lambda i: -scores[i])[: self.limits.max_items]
        return tuple(texts[i] for i in sorted(best))


def pad(rows: Sequence[Sequence[int]], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Ids `[n, longest]` (int64, right-padded with `fill`) and mask (bool). No rows give `[0, 1]`."""
    width = max((len(row) for row in rows), default=1) or 1
    ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long).view(len(rows), width)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    return ids, torch.arange(width) < lengths[:, None]


@dataclass(slots=True)
class Batch:
    """Everything one forward pass needs, as tensors on one device."""

    ids: Tensor
    """[R, T] int64"""
    mask: Tensor
    """[R, T] bool, True on tokens"""
    start: Tensor
    """[R] int64, first response token"""
    user: Tensor
    """[R] int64, row of `known` and `profile`"""
    known: Tensor
    """[B] int64, row of the identity table; 0 = unknown"""
    item_ids: Tensor
    """[I, L] int64, distinct items"""
    item_mask: Tensor
    """[I, L] bool"""
    profile: Tensor
    """[B, N] int64, index into the I items; -1 = no item"""

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: getattr(self, name).to(device) for name in self.__slots__})


def collate_responses(rows: Sequence[ResponseIds]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids `[R, T]`, mask `[R, T]` and start `[R]`."""
    ids, mask = pad([row.ids for row in rows])
    return ids, mask, torch.tensor([row.start for row in rows], dtype=torch.long)


def collate(
    encoder: TextEncoder, requests: Sequence[ScoreRequest], users: Sequence[int], known: Sequence[int]
) -> Batch:
    """Build a batch of R requests; `users[r]` is the user row of request r and `known[b]` its identity row.

    The profile of user row b is that of its first request. Equal items are encoded once.
    """
    ids, mask, start = collate_responses([encoder.row(r) for r in requests])
    first = dict(reversed(list(zip(users, requests, strict=True))))
    index: dict[tuple[int, ...], int] = {}
    profiles = [
        [index.setdefault(row, len(index)) for row in encoder.profile(first[user])] for user in range(len(known))
    ]
    # never empty, because under FSDP every process must call the backbone
    item_ids, item_mask = pad(list(index) or [(encoder.eos,)])
    profile, _ = pad(profiles, fill=-1)
    return Batch(
        ids=ids, mask=mask, start=start, user=torch.tensor(users, dtype=torch.long),
        known=torch.tensor(known, dtype=torch.long), item_ids=item_ids, item_mask=item_mask, profile=profile,
    )  # fmt: skip
