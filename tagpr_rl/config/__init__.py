"""What a recipe may set: typed, closed blocks, and how recipes are read."""

from tagpr_rl.config.recipe import *  # noqa: F403
from tagpr_rl.config.recipe import __all__ as __all__
