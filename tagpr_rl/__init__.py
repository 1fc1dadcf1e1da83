"""tagpr_rl: an open implementation of TagPR, personalization reasoning by tag-guided RL.

The names of `__all__` are what a notebook wants. Each is imported when it is first used; `Scorer` alone needs torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tagpr_rl.data.lamp import load_lamp as load_lamp
    from tagpr_rl.eval.lamp_eval import evaluate as evaluate
    from tagpr_rl.prmu.serving.score import Scorer as Scorer
    from tagpr_rl.reward.rubric import Rubric as Rubric
    from tagpr_rl.tags.grammar import parse as parse

__version__ = "0.2.0.dev0"
__all__ = ["Rubric", "Scorer", "evaluate", "load_lamp", "parse"]

_HOMES = {
    "Rubric": "tagpr_rl.reward.rubric",
    "Scorer": "tagpr_rl.prmu.serving.score",
    "evaluate": "tagpr_rl.eval.lamp_eval",
    "load_lamp": "tagpr_rl.data.lamp",
    "parse": "tagpr_rl.tags.grammar",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tagpr_rl' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
