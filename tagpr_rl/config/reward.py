"""What a GRPO stage is rewarded for: the list of terms, its short form, and how a reward becomes an advantage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tagpr_rl.config.base import Closed, NonNegative, worded
from tagpr_rl.reward.components import (
    COMPONENTS,
    GATED,
    RESERVED,
    Term,
    make_term,
    needs_prmu,
    short_form,
    term_names,
)
from tagpr_rl.types import did_you_mean


class RewardWeights(Closed):
    """Short form of `reward`: task_format + alpha * tag + beta * prmu_format + gamma * repetition."""

    alpha: NonNegative = 0.2
    """Weight of `tag`. The paper does not publish its weights."""
    beta: NonNegative = 0.2
    """Weight of `prmu`; 0 switches PRMU off in this stage."""
    gamma: NonNegative = 0.1
    """Weight of `repetition`, which is negative itself."""
    gate: bool = True
    """PRMU's term counts only for a well-formed response: beta * prmu * format; false = for any response."""

    def terms(self) -> tuple[Term, ...]:
        """The list that the short form stands for."""
        return short_form(self.alpha, self.beta, self.gamma, gate=self.gate)


class RewardTerm(Closed):
    """One summand of the reward: a built-in component by name, or a user's own function."""

    name: Annotated[str, worded(r"[a-z][a-z0-9_]*", "a name of small letters, digits and `_`")] | None = None
    """A built-in component, or `task_format` (task * format). With `fn` the name of the user's component; null = the
    function's name."""
    fn: Annotated[str, worded(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "of the form module:function")] | None = None
    """`module:function` of a user's component, from the working directory or an installed package. The function gets
    a `tagpr_rl.reward.response.Response` and returns a number in [-1, 1]."""
    weight: NonNegative
    """The term's weight in the sum."""
    gate: bool = False
    """true = the term is multiplied by `format`, so that a malformed response has nothing of it (`task_format` is
    `task` with a gate). Not for `repetition`, a penalty, which the gate would spare malformed responses."""

    @model_validator(mode="after")
    def _known(self) -> RewardTerm:
        name = self.key
        if self.fn is not None and (name in term_names() or name in RESERVED):
            raise ValueError(f"'{name}' is a name of the built-in reward; give {self.fn} another `name`")
        if self.fn is None and name not in term_names():
            hint = did_you_mean(name, term_names(), otherwise=f"known: {', '.join(term_names())}.")
            raise ValueError(f"no reward component is called '{name}'; {hint} A component of your own has a `fn`")
        if self.gate and self.fn is None and name in COMPONENTS and COMPONENTS[name].high <= 0:
            raise ValueError(f"{name} is a penalty, which gate: true would spare malformed responses; remove the gate")
        return self

    @property
    def key(self) -> str:
        """The component's name in rows, metrics and files."""
        return self.name or (self.fn or "").rpartition(":")[2]

    def term(self) -> Term:
        """The summand that the entry stands for."""
        if self.fn is None and self.key.endswith(GATED):
            return make_term(self.key.removesuffix(GATED), self.weight, gate=True)
        return make_term(self.key, self.weight, self.fn or "", gate=self.gate)


def list_mistake(terms: tuple[RewardTerm, ...]) -> str:
    """What is wrong with a whole `reward` list; "" if nothing is."""
    names = [term.term().name for term in terms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        return f"reward names {', '.join(twice)} twice; give each component one term"
    if not any(term.weight for term in terms):
        return "reward has no term with a weight above 0; every response would get 0"
    return ""


def prmu_terms(terms: tuple[Term, ...]) -> list[Term]:
    """The weighted terms that need PRMU's score."""
    return [term for term in terms if term.weight > 0 and any(map(needs_prmu, term.factors))]


class AdvantageBlock(Closed):
    """How a response's reward becomes the advantage of its tokens (reward.update)."""

    normalise: Literal["group_std", "none", "per_component"] = "group_std"
    """group_std: (R - mean) / std of the group (GRPO). none: R - mean (Dr. GRPO). per_component: each term is
    normalised by its own group, weighted and summed, and the sum is divided by the batch's deviation (GDPO)."""
    zero_variance: Literal["keep", "drop", "resample"] = "keep"
    """What happens to groups in which every advantage is 0. keep: their tokens count in the loss's mean. drop: they do
    not count, and are logged as `algo/dropped_groups_total`. resample: other prompts replace them, as in DAPO, until
    the step is full (needs placement.rollout: colocated)."""
    resample_limit: float = Field(default=2.0, gt=0.0)
    """With resample: groups that a step may replace, as a multiple of prompts_per_step; later equal groups are kept."""
    credit: Literal["response", "step"] = "response"
    """response: the whole reward is paid on all tokens. step: a tagged step's soundness and repetition are paid on that
    step's tokens, and the rest on all tokens."""
    step_weight: NonNegative = 0.2
    """With credit: step, the weight of the normalised step rewards beside the response's normalised reward."""

    def rules(self) -> dict[str, Any]:
        """Fields of reward.update.AdvantageRules, all but the terms."""
        return self.model_dump(exclude={"resample_limit"})

    @model_validator(mode="after")
    def _goes_together(self) -> AdvantageBlock:
        if self.credit == "step" and self.normalise == "per_component":
            raise ValueError(
                "credit: step splits the reward by step, normalise: per_component by component; "
                "set normalise: group_std or none"
            )
        return self
