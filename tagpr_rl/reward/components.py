"""The reward's components: name -> function, range, meaning. This is the only list; all other code loops over it.

A *component* is a number of every response, a column `reward_<name>`. A *term* of the reward is a weight times a
component. A term with a *gate* is also multiplied by `format` (`task_format` = task * format), so that a malformed
response has nothing of it. The reward is the sum of the terms of the stage's recipe. To add a built-in component, add
an entry to COMPONENTS; a user's own one is named in a recipe as `fn: module:function`.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.reward.repetition import repetition_penalty, steps_penalty
from tagpr_rl.reward.response import Response, ResponseParts, StepPart
from tagpr_rl.reward.task import task_reward
from tagpr_rl.types import TagprError, did_you_mean

USER_RANGE = (-1.0, 1.0)
"""Values that a user's own component may return."""
TOTAL = "total"
RESERVED = (TOTAL, "parse_status", "prmu_status")
"""Keys of a reward row that no component may have."""


@dataclass(frozen=True, slots=True)
class StepCredit:
    """How a component is split between a response and its steps under `credit: step`."""

    of_step: Callable[[StepPart], float]
    """A step's own value; 0 is the most."""
    of_rest: Callable[[ResponseParts], float]
    """What stays with the response."""


@dataclass(frozen=True, slots=True)
class Component:
    """A number of every response."""

    name: str
    function: Callable[[Response], float]
    low: float
    high: float
    """The least and the greatest value."""
    meaning: str
    """One line for the report."""
    always: bool = False
    """Measured in every stage, also if it has no weight there."""
    needs_prmu: bool = False
    """Only measured for responses that PRMU scored; the others have 0."""
    steps: StepCredit | None = None
    """None: under `credit: step` the whole component stays with the response."""
    source: str = "built in"
    """A user's `module:function`, for errors."""


def _task(response: Response) -> float:
    return 0.0 if response.trace is None else task_reward(response.task, response.trace.answer, response.gold)


def _repetition(response: Response) -> float:
    if response.trace is None:
        return repetition_penalty(response.text)
    return steps_penalty([step.text for step in response.trace.steps], response.plain)


COMPONENTS: dict[str, Component] = {
    component.name: component
    for component in (
        Component(
            "task", _task, 0.0, 1.0,
            "is the answer right, in [0, 1]: exact match (LaMP-1, 2, 2N), closeness of the rating (LaMP-3), mean of "
            "ROUGE-1 and ROUGE-L (LaMP-4 to 7)",
            always=True,
        ),
        Component(
            "format", lambda response: float(response.trace is not None), 0.0, 1.0,
            "1 if the parser accepts the response, else 0; multiplies the task term",
            always=True,
        ),
        Component(
            "tag", lambda response: response.tags.score if response.tags else 0.0, 0.0, 1.0,
            "how far the chain meets the tag schema's constraints, in [0, 1]; empty, repeated or near-duplicate steps "
            "earn nothing",
            always=True,
            steps=StepCredit(lambda step: step.sound - 1.0, lambda parts: parts.coverage),
        ),
        Component(
            "prmu", lambda response: response.prmu, 0.0, 1.0,
            "the personalization reward model's score of the response for this user, in [0, 1]",
            always=True,
            needs_prmu=True,
        ),
        Component(
            "repetition", _repetition, -1.0, 0.0,
            "n-gram repetition of the thought, in [-1, 0]; 0 is none",
            always=True,
            steps=StepCredit(lambda step: step.repetition, lambda parts: 0.0),
        ),
    )
}  # fmt: skip
"""Built-in components in the order of their columns. A malformed response has task = format = tag = 0, and the
repetition of its raw text."""
GATE = "format"
"""The component by which a gate multiplies."""
GATED = f"_{GATE}"
"""The end of a gated term's name."""
SHORT_FORM = {"alpha": "tag", "beta": "prmu", "gamma": "repetition"}
"""Keys of a recipe's `weights`, the short form of the list; there `task_format` has the weight 1."""


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of the reward: a weight times a component, and times `format` if it has a gate."""

    name: str
    """The component's name, with the end GATED if the term has a gate."""
    weight: float
    fn: str = ""
    """A user's `module:function`; empty for a built-in component."""
    gate: bool = False
    """Whether a malformed response has nothing of the term."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"the weight of {self.component} must be finite and not negative, got {self.weight!r}")

    @property
    def component(self) -> str:
        """The name of the term's own component."""
        return self.name.removesuffix(GATED) if self.gate else self.name

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of the components that are multiplied."""
        return (self.component, GATE) if self.gate else (self.component,)

    @property
    def label(self) -> str:
        """The term without its weight, for people: `task × format`."""
        return " × ".join(self.factors)

    def value(self, row: Mapping[str, float]) -> float:
        """The term's value in a row of components, before the weight."""
        first, *others = self.factors
        value = row[first]
        for name in others:
            value = value * row[name]
        return value


def make_term(component: str, weight: float, fn: str = "", *, gate: bool = False) -> Term:
    """The term of a component."""
    return Term(f"{component}{GATED}" if gate else component, weight, fn, gate)


def short_form(alpha: float = 0.2, beta: float = 0.2, gamma: float = 0.1, *, gate: bool = True) -> tuple[Term, ...]:
    """The terms of `weights`: task * format + alpha * tag + beta * prmu * format + gamma * repetition.

    `gate`: false leaves the third term without `format`.
    """
    weights = {"alpha": alpha, "beta": beta, "gamma": gamma}
    terms = (make_term(name, weights[key], gate=gate and needs_prmu(name)) for key, name in SHORT_FORM.items())
    return (make_term("task", 1.0, gate=True), *terms)


def contributions(terms: Iterable[Term], row: Mapping[str, float]) -> dict[str, float]:
    """Term name -> what it adds to the reward of a row of components. This is the reward's formula."""
    return {term.name: term.weight * term.value(row) for term in terms}


def weighted_sum(terms: Iterable[Term], row: Mapping[str, float]) -> float:
    """The reward of a row of components: its contributions, added in the order of the terms."""
    total = 0.0
    for value in contributions(terms, row).values():
        total += value
    return total


def component_names(terms: Iterable[Term]) -> tuple[str, ...]:
    """The components that a stage with these terms measures: the same keys for each of its responses."""
    named = {factor: None for term in terms for factor in term.factors}
    always = {name: None for name, component in COMPONENTS.items() if component.always}
    return tuple(always | named)


def term_names() -> list[str]:
    """What a recipe may name: built-in components, and `task_format`."""
    return [f"task{GATED}", *COMPONENTS]


def needs_prmu(name: str) -> bool:
    """Whether a component is a measurement only if PRMU scored the response."""
    return name in COMPONENTS and COMPONENTS[name].needs_prmu


def line_weights(saved: Mapping[str, float]) -> dict[str, float]:
    """Term name -> weight, from the `weights` of a rollout line; older runs wrote the short form."""
    if set(saved) == set(SHORT_FORM):
        return {term.name: term.weight for term in short_form(*(saved[key] for key in SHORT_FORM), gate=False)}
    return dict(saved)


def load_components(terms: Iterable[Term], folder: Path | None = None) -> tuple[Component, ...]:
    """The components that a stage with these terms measures, users' functions imported.

    Args:
        folder: users' modules, if they are not installed packages; None = the working directory.

    Raises:
        TagprError: a module or function that does not exist.
    """
    own = {term.component: term.fn for term in terms if term.fn}
    return tuple(
        _user_component(name, own[name], folder or Path.cwd()) if name in own else COMPONENTS[name]
        for name in component_names(terms)
    )


def source_file(fn: str) -> Path | None:
    """The file that holds a user's function, not imported; None if there is no such module."""
    _look_in(Path.cwd())
    try:
        spec = importlib.util.find_spec(fn.partition(":")[0])
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _look_in(folder: Path) -> None:
    """Let imports find the modules of a folder, after all others: a file of the user's hides no package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def _user_component(name: str, fn: str, folder: Path) -> Component:
    module_name, _, function_name = fn.partition(":")
    _look_in(folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there and imports something that is not
        raise TagprError(
            f"reward component '{name}': there is no module '{module_name}' (fn: {fn}), neither installed nor in "
            f"{folder}; run from the folder of {module_name.partition('.')[0]}.py or install it"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        hint = did_you_mean(function_name, functions, otherwise=f"its functions are {', '.join(functions) or 'none'}")
        raise TagprError(f"reward component '{name}': {module.__file__} has no function '{function_name}'; {hint}")
    lines = (inspect.getdoc(function) or "").splitlines()
    return Component(name, function, *USER_RANGE, lines[0] if lines else f"your {fn}", source=fn)


def value_of(component: Component, response: Response) -> float:
    """The component's value of a response. TagprError if the function returns no number in its range (NaN included).

    An exception of the function itself passes through: it is a mistake of code, and never becomes a reward.
    """
    value: object = component.function(response)
    if isinstance(value, bool) or not isinstance(value, float | numbers.Real):
        raise _bad_value(component, response, value)
    result = float(value)
    if not component.low <= result <= component.high:  # false for NaN
        raise _bad_value(component, response, value)
    return result


def _bad_value(component: Component, response: Response, value: object) -> TagprError:
    return TagprError(
        f"reward component '{component.name}' ({component.source}) returned {value!r} for a {response.task} response "
        f"that begins {response.text[:60]!r}; it must return a number in [{component.low:g}, {component.high:g}]"
    )
