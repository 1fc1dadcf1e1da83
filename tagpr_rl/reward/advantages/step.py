"""Credit per tagged step (process supervision): each step's own reward, and what it adds to its tokens' advantage.

A response's reward is split. Soundness and repetition are a step's own doing, so the step's tokens are paid for them.
A required tag that the chain lacks has no tokens, so coverage stays with the response, next to the task reward, PRMU
and users' own components. `components.StepCredit` says how a component is split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tagpr_rl.reward.advantages.group import group_advantages
from tagpr_rl.reward.components import COMPONENTS, TOTAL, StepCredit, Term
from tagpr_rl.reward.response import ResponseParts, StepPart

SplitTerm = tuple[Term, StepCredit]


def split_terms(terms: Iterable[Term]) -> list[SplitTerm]:
    """The terms that steps are paid for, each with its split."""
    components = ((term, COMPONENTS.get(term.component)) for term in terms)
    return [(term, component.steps) for term, component in components if component is not None and component.steps]


def step_reward(step: StepPart, split: Sequence[SplitTerm]) -> float:
    """A step's reward in [-1, 0]: the mean of its own values, weighted as in the composite reward.

    With the built-in components it is `(alpha * (sound - 1) + gamma * repetition) / (alpha + gamma)`. A sound step
    without repetition earns 0, the most there is, and so do all of them: no step is worth writing for its own sake.
    """
    reward = weight = 0.0
    for term, credit in split:
        reward += term.weight * credit.of_step(step)
        weight += term.weight
    return reward / weight


def response_reward(row: Mapping[str, float], parts: ResponseParts, split: Sequence[SplitTerm]) -> float:
    """What stays with the response: its total, with `of_rest` of each split component in the component's place.

    So coverage replaces `tag`, and the repetition of parsed steps is left out.
    """
    reward = row[TOTAL]
    if parts.steps:
        for term, credit in split:
            reward += term.weight * (credit.of_rest(parts) - row[term.component])
    return reward


def step_advantages(rewards: Sequence[Sequence[float]], *, norm_std: bool) -> list[list[float]]:
    """Step advantages of one group: step rewards `[G][K_i]` -> `[G][K_i]`.

    As in DeepSeekMath's process supervision (arXiv 2402.03300, section 4.1.3), rewards are normalised over all steps
    of all responses of the group: `(r - mean) / (std + eps)` with the sample deviation, as for responses, or only
    centred (`norm_std=False`). Unlike there, a token gets the value of its own step and not the sum over the steps
    that follow. That sum grows with the number of steps left, so a chain of ordinary steps would gain by being longer
    whenever another step of the group is bad.
    """
    flat = group_advantages([reward for steps in rewards for reward in steps], norm_std=norm_std)
    values = iter(flat)
    return [[next(values) for _ in steps] for steps in rewards]
