"""The user in PRMU: e_u = e_0 + attention over the profile (+ o_u for users seen in training).

P-RLHF (arXiv 2402.05133) has e_u = e_0 + o_u, which says nothing about a new user; the profile term does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagpr_rl.prmu.users.table import ShardedUsers
from tagpr_rl.types import TagprError

SHARPNESS = 12.0
"""Attention logit of a query and an equal key before training: one match outweighs hundreds of other tokens."""
GAIN = 24.0
"""Score of a state and an equal user vector before training."""


class UserTable:
    """Maps user ids to rows 1..K of the identity table; every other id maps to row 0, the unknown user."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self.ids = tuple(ids)
        self._rows = {user: row for row, user in enumerate(self.ids, start=1)}
        if len(self._rows) != len(self.ids):
            raise TagprError("PRMU: the user table holds an id twice; train PRMU again")

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, users: Sequence[str]) -> list[int]:
        """Row number of each user; 0 = unknown. Every id is valid."""
        return [self._rows.get(user, 0) for user in users]


class MappedUsers(nn.Module):
    """Replaces the identity embedding by a sharded table on disk: row numbers `[...]` -> rows `[..., D]` fp32.

    The result is on the numbers' device. The module has no parameters, so it cannot be trained, and the rows stay on
    disk when the model moves to a device.
    """

    def __init__(self, table: ShardedUsers) -> None:
        super().__init__()
        self.table = table

    def forward(self, rows: Tensor) -> Tensor:
        """The rows of users `rows`; zeros for 0."""
        vectors = torch.from_numpy(self.table.vectors(rows.reshape(-1).cpu().numpy()))
        return vectors.to(rows.device).reshape(*rows.shape, self.table.dim)


def drop_users(known: Tensor, p: float, draws: Tensor) -> Tensor:
    """Set each row of `known` ([B] int64) to 0, as if the user were new, if its draw is below `p`.

    `draws` `[B]`: uniform in [0, 1).
    """
    return known * (draws.to(known.device) >= p)


class UserEncoder(nn.Module):
    """User vectors for queries: e_0 + attention(query, profile) + o_u.

    The attention has one null slot whose value is zero: a query without a match in the profile adds nothing, and an
    empty profile gives e_0 exactly. Query, key and value start as the identity, so that the attention first looks for
    equal tokens.
    """

    def __init__(self, dim: int, heads: int, n_known: int = 0) -> None:
        super().__init__()
        if dim % heads:
            raise TagprError(f"PRMU: {heads} heads do not divide the backbone's hidden size {dim}")
        self.heads = heads
        self.e_0 = nn.Parameter(torch.zeros(dim))
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.null_key = nn.Parameter(torch.zeros(dim))
        for layer in (self.query, self.key, self.value):
            nn.init.eye_(layer.weight)
        self.identity: nn.Module | None = None
        if n_known:
            self.identity = table = nn.Embedding(n_known + 1, dim, padding_idx=0)
            nn.init.zeros_(table.weight)

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)  # [R, heads, n, D/heads]

    def attend(self, queries: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        """Profile term `[R, Q, D]` of queries `[R, Q, D]` over items `[R, M, D]`, mask `[R, M]` (True = item)."""
        rows = items.shape[0]
        null = self.null_key.expand(rows, 1, -1)
        k = self._split(torch.cat([null, self.key(items)], dim=1))
        v = self._split(torch.cat([torch.zeros_like(null), self.value(items)], dim=1))
        visible = torch.cat([mask.new_ones(rows, 1), mask], dim=1)[:, None, None, :]
        q = self._split(self.query(queries))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=SHARPNESS / q.shape[-1])
        return out.transpose(1, 2).flatten(2)

    def forward(self, queries: Tensor, items: Tensor, mask: Tensor, known: Tensor) -> Tensor:
        """User vectors `[R, Q, D]`: one per query. `known` `[R]` holds identity rows (0 = unknown)."""
        users = self.e_0 + self.attend(queries, items, mask)
        if self.identity is not None:
            users = users + self.identity(known)[:, None, :]
        return users


def with_item_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Item token states `[I, L, D]` beside the normalised mean of their item: `[I, L, 2 D]`."""
    weight = mask[..., None].float()
    pooled = (states * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    return torch.cat([states, F.layer_norm(pooled, pooled.shape[-1:]).expand_as(states)], dim=-1)


def with_window_mean(states: Tensor, window: int) -> Tensor:
    """Response states `[R, T, D]` beside the normalised mean of the last `window` of them: `[R, T, 2 D]`.

    Together with `with_item_mean` a token can find the item that its phrase is about, and compare itself with it.
    """
    padded = F.pad(states.transpose(1, 2), (window - 1, 0))
    recent = F.avg_pool1d(padded, window, stride=1).transpose(1, 2)
    return torch.cat([states, F.layer_norm(recent, recent.shape[-1:])], dim=-1)


def interact(states: Tensor, users: Tensor) -> Tensor:
    """<state, user> over the last axis, scaled so that equal normalised vectors give GAIN at any size."""
    return GAIN * (states * users).mean(-1)
