"""PRMU's model: score(u, x, o) = head(h) + coherence(x, o) + <proj(h), e_u>, on any Hugging Face causal backbone.

The paper does not publish its reward model. In this one the user enters only through the product with the response's
states: a term without the response is the same for both sides of a pair and would cancel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoTokenizer

from tagpr_rl.files import replacing, write_json
from tagpr_rl.prmu.inputs import PROFILES, USERS, Batch, Limits, TextEncoder
from tagpr_rl.prmu.users.table import INDEX, ShardedUsers
from tagpr_rl.prmu.users.vectors import MappedUsers, UserEncoder, UserTable, interact, with_item_mean, with_window_mean
from tagpr_rl.types import TagprError

FORMAT = "tagpr_rl.prmu/2"
COHERENCE_GAIN = 8.0
"""Score of one nat of mean log-probability before training."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MASKED = -1e9
"""Logit of a token that is padding or another token."""


@dataclass(frozen=True, slots=True)
class PrmuModelConfig:
    """Shape of the model, and the mean and deviation that map its raw scores into [0, 1]."""

    user: str = PROFILES
    """"attention": e_u = e_0 + attention over the profile (+ o_u). Baselines: "identity": e_0 + o_u, as P-RLHF
    (arXiv 2402.05133); "text": the profile stands in the backbone's input; "generic": no user."""
    heads: int = 4
    window: int = 6
    """Number of preceding response tokens that say which item a claim is about."""
    limits: Limits = field(default_factory=Limits)
    dtype: str = "float32"
    """Number format of the backbone's forward pass, float32 or bfloat16; its weights and all else stay in float32."""
    score_mean: float = 0.0
    score_std: float = 1.0

    def __post_init__(self) -> None:
        if self.user not in USERS:
            raise TagprError(f"PRMU: user is {self.user!r}; use one of {', '.join(USERS)}")
        if self.dtype not in DTYPES:
            raise TagprError(f"PRMU: dtype is {self.dtype!r}; use one of {', '.join(DTYPES)}")
        if self.window < 1:
            raise TagprError(f"PRMU: window is {self.window}; it must be at least 1")
        if not self.score_std > 0:
            raise TagprError(f"PRMU: score_std is {self.score_std}; it must be above 0")


class Coherence(nn.Module):
    """A user-independent term: the mean log-probability of the response's tokens, each among the text's own tokens.

    A thought that says "so fantasy" before the answer "romance" is wrong for every user, and a score that only compares
    single words with the user cannot see that. The backbone's last state before a token predicts the token. The
    candidates are the tokens of question and response, as in a pointer network (arXiv 1506.03134), so that no
    vocabulary-sized output is needed. A gate weighs the tokens, since names from the profile are not predictable.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expect = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.expect.weight)  # with tied embeddings this is the language model's own expectation
        self.gate = nn.Linear(dim, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.strength = nn.Parameter(torch.ones(1))

    def log_probabilities(self, before: Tensor, words: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """`[R, T - 1]`: log-probability of tokens 1..T-1 among all tokens of their row; equal tokens count together.

        `before`: the backbone's last states `[R, T, D]`; `words`: its embeddings `[R, T, D]`; `ids`, `mask` `[R, T]`.
        """
        logits: Tensor = self.expect(before[:, :-1]) @ words.transpose(1, 2)  # [R, T - 1, T]
        logits = logits.masked_fill(~mask[:, None, :], MASKED)
        same = ids[:, 1:, None] == ids[:, None, :]
        return logits.masked_fill(~same, MASKED).logsumexp(-1) - logits.logsumexp(-1)

    def forward(self, before: Tensor, words: Tensor, gated: Tensor, ids: Tensor, mask: Tensor, start: Tensor) -> Tensor:
        """The term `[R]`, at most 0 while `strength` is positive. `gated` `[R, T, D]`: what the gate reads."""
        place = torch.arange(1, ids.shape[1], device=ids.device)
        counted = (mask[:, 1:] & (place >= start[:, None])).float()
        weight = 2 * torch.sigmoid(self.gate(gated[:, :-1]).squeeze(-1)) * counted
        log_probability = self.log_probabilities(before, words, ids, mask)
        return COHERENCE_GAIN * self.strength * (weight * log_probability).sum(1) / counted.sum(1)


class PrmuModel(nn.Module):
    """Backbone, user encoder, user-independent head and projection. Scores are raw (unbounded) here."""

    def __init__(self, backbone: nn.Module, config: PrmuModelConfig, users: UserTable) -> None:
        super().__init__()
        hidden: Any = backbone.config
        dim, depth = int(hidden.hidden_size), int(hidden.num_hidden_layers)
        self.config = config
        self.table: UserTable | ShardedUsers = users
        self.backbone = backbone
        self.recomputes = False
        # What meets the user starts mostly at the embeddings, what the head reads at the last layer.
        self.layer_mix = nn.Parameter(3.0 * F.one_hot(torch.tensor(0), depth + 1).float())
        self.head_mix = nn.Parameter(3.0 * F.one_hot(torch.tensor(depth), depth + 1).float())
        self.norm = nn.LayerNorm(dim)
        self.head_norm = nn.LayerNorm(dim)
        self.users = UserEncoder(2 * dim, config.heads, len(users))
        self.proj = nn.Linear(2 * dim, 2 * dim, bias=False)
        nn.init.eye_(self.proj.weight)
        self.coherence = Coherence(dim)
        self.head = nn.Linear(dim, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def recompute(self) -> None:
        """In training, compute every block's inner states, and the normalised layers, again for the backward pass."""
        backbone: Any = self.backbone
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
        self.recomputes = True

    def layers(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Every layer's states, each fp32 `[n, T, D]`: the embeddings first, the last after the model's own norm."""
        dtype = DTYPES[self.config.dtype]
        with torch.autocast(ids.device.type, dtype=dtype, enabled=dtype != torch.float32):
            out = self.backbone(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False)
        return tuple(layer.float() for layer in out.hidden_states)

    def states(self, layers: Sequence[Tensor]) -> Tensor:
        """What meets the user, `[n, T, D]`: a learned mix of the normalised layers, normalised.

        The last layer of a language model is about the *next* token, so the mix starts mostly at the embeddings:
        there a quoted word equals its source, so a claim can be compared with it.
        """
        states: Tensor = self.norm(self._mixed(layers, self.layer_mix))
        return states

    def head_states(self, layers: Sequence[Tensor]) -> Tensor:
        """What the user-independent terms read, `[n, T, D]`: a second learned mix of the layers."""
        states: Tensor = self.head_norm(self._mixed(layers, self.head_mix))
        return states

    def _mixed(self, layers: Sequence[Tensor], mix: Tensor) -> Tensor:
        total = torch.zeros_like(layers[0])
        for weight, layer in zip(mix.softmax(0), layers, strict=True):
            if self.recomputes and self.training:
                total = total + checkpoint(_weighted, weight, layer, use_reentrant=False)
            else:
                total = total + _weighted(weight, layer)
        return total

    def item_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States `[I, L, 2 D]` of items `[I, L]` that users attend to; their mask is `mask`."""
        return with_item_mean(self.states(self.layers(ids, mask)), mask)

    def scores(
        self, ids: Tensor, mask: Tensor, start: Tensor, items: Tensor, item_mask: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Raw scores for the user and for nobody (e_0 only), each `[R]`.

        Every response token attends to the profile's tokens, so that a claim can be checked against its source.
        `ids`, `mask` `[R, T]`, `start` `[R]`; `items` `[R, M, 2 D]`, `item_mask` `[R, M]`; `known` `[R]`.
        """
        layers = self.layers(ids, mask)
        states, read = self.states(layers), self.head_states(layers)
        rows = torch.arange(ids.shape[0], device=ids.device)
        base = self.head(read[rows, mask.sum(1) - 1]).squeeze(-1)
        base = base + self.coherence(layers[-1], layers[0], read, ids, mask, start)
        place = torch.arange(ids.shape[1], device=ids.device)
        weight = (mask & (place >= start[:, None])).float()
        weight = weight / weight.sum(1, keepdim=True)
        states = with_window_mean(states, self.config.window)
        side = self.proj(states)
        user = self.users(states, items, item_mask, known)
        return (
            base + (weight * interact(side, user)).sum(1),
            base + (weight * interact(side, self.users.e_0)).sum(1),
        )

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Raw scores `[R]` for the users and for nobody."""
        states = self.item_states(batch.item_ids, batch.item_mask)
        items, item_mask = gather_items(states, batch.item_mask, batch.profile)
        user = batch.user
        known = batch.known[user]
        return self.scores(batch.ids, batch.mask, batch.start, items.index_select(0, user), item_mask[user], known)

    def save_pretrained(self, folder: Path, tokenizer: Any, state: dict[str, Tensor] | None = None) -> None:
        """Write config.json, users.json, model.safetensors, backbone/config.json and tokenizer/ (no pickle).

        `state` replaces the module's own weights when those are sharded.
        """
        if isinstance(self.table, ShardedUsers):
            raise TagprError(f"PRMU: its users are in {self.table.folder}; copy the whole folder instead")
        state = self.state_dict() if state is None else state
        backbone: Any = self.backbone
        backbone.config.save_pretrained(folder / "backbone")
        tokenizer.save_pretrained(folder / "tokenizer")
        write_json(folder / "users.json", list(self.table.ids))
        with replacing(folder / "model.safetensors") as temp:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temp)
        write_config(folder, self.config)

    @classmethod
    def from_pretrained(cls, folder: Path) -> tuple[PrmuModel, TextEncoder]:
        """The model that `save_pretrained` wrote, in fp32 on the CPU and in evaluation mode, and its text encoder."""
        config, ids = _read_config(folder)
        backbone = AutoModel.from_config(AutoConfig.from_pretrained(folder / "backbone"), dtype=torch.float32)
        model = cls(backbone, config, UserTable(ids))
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise TagprError(
                f"{folder / 'model.safetensors'}: does not hold this model ({' '.join(str(error).split())}); "
                "train PRMU again"
            ) from error
        attach_table(model, folder / "users")
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        return model.eval(), TextEncoder(tokenizer, config.limits, config.user)


def _weighted(weight: Tensor, layer: Tensor) -> Tensor:
    return weight * F.layer_norm(layer, layer.shape[-1:])


def attach_table(model: PrmuModel, folder: Path) -> None:
    """Give a model without identity rows those of the sharded table in `folder`, if there is one."""
    if not (folder / INDEX).is_file():
        return
    table, dim = ShardedUsers(folder), model.users.e_0.shape[0]
    if model.users.identity is not None or table.dim != dim:
        raise TagprError(f"{folder}: rows of {table.dim} for a PRMU of {dim}, or one with rows of its own; train again")
    model.table, model.users.identity = table, MappedUsers(table)


def gather_items(states: Tensor, mask: Tensor, profile: Tensor) -> tuple[Tensor, Tensor]:
    """Item states of each user in one row: `[B, M, D]` and mask `[B, M]`, with M = N * L.

    `states` `[I, L, D]`, `mask` `[I, L]`, `profile` `[B, N]` (-1 = no item).
    """
    users, slots = profile.shape
    index = profile.clamp(min=0)
    present = (profile >= 0)[..., None] & mask[index]
    items = states.index_select(0, index.reshape(-1))  # not states[index], whose gradient torch adds up in any order
    return items.reshape(users, slots * states.shape[1], -1), present.reshape(users, -1)


def new_model(backbone: Path, config: PrmuModelConfig, users: UserTable) -> tuple[PrmuModel, TextEncoder]:
    """A new PRMU, fp32, on the Hugging Face causal model in `backbone` (without its language-model head)."""
    if not (backbone / "config.json").is_file():
        raise TagprError(f"{backbone}: no config.json; give the folder of a Hugging Face model")
    model = AutoModel.from_pretrained(backbone, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    return PrmuModel(model, config, users), TextEncoder(tokenizer, config.limits, config.user)


def write_config(folder: Path, config: PrmuModelConfig) -> None:
    """Write (or replace) config.json of a PRMU folder."""
    head = {"format": FORMAT, "user": config.user, "interaction": "token"}  # the format allowed another one once
    write_json(folder / "config.json", {**head, **asdict(config)})


def _read_config(folder: Path) -> tuple[PrmuModelConfig, list[str]]:
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        ids = json.loads((folder / "users.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise TagprError(f"{folder}: not a PRMU folder ({error}); give one that training wrote") from error
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise TagprError(f"{path}: format is not {FORMAT!r}; train PRMU again")
    if raw.pop("interaction", None) != "token":
        raise TagprError(f"{path}: its interaction is not 'token'; train PRMU again")
    raw.setdefault("dtype", "float32")  # written before there was a choice
    unknown = sorted(set(raw) ^ {f.name for f in fields(PrmuModelConfig)})
    if unknown:
        raise TagprError(f"{path}: key {unknown[0]!r} is unknown or missing; train PRMU again")
    return PrmuModelConfig(**{**raw, "limits": Limits(**raw["limits"])}), ids
