"""What a recipe may set: typed, closed blocks, and how recipes are read."""

from tagpr_rl.config.base import Closed
from tagpr_rl.config.cluster import ClusterBlock
from tagpr_rl.config.data import CompactBlock, DataBlock, PromptBlock, RetrievalBlock, WorldBlock
from tagpr_rl.config.endpoints import EndpointBlock
from tagpr_rl.config.grpo import GrpoStage
from tagpr_rl.config.keep import KeepBlock
from tagpr_rl.config.kinds import KINDS, Stage
from tagpr_rl.config.load import (
    dump_recipe,
    load_recipe,
    parse_override,
    read_raw,
    recipe_from_dict,
    recorded_recipe,
    set_key,
)
from tagpr_rl.config.log import Loggers
from tagpr_rl.config.model import LoraBlock, ModelBlock, TinyBlock
from tagpr_rl.config.placement import PlacementBlock
from tagpr_rl.config.platform import BudgetBlock, PlatformBlock, TrainingBlock
from tagpr_rl.config.recipe import (
    Recipe,
    answers_directly,
    needed_for,
    prompt_style,
    prompt_styles,
    stage_limits,
    training_steps,
    upstream,
)
from tagpr_rl.config.reward import RewardWeights
from tagpr_rl.config.rules import FilterBlock, StopBlock
from tagpr_rl.config.stage import DeepSpeedBlock, StageBase, TrainingStage
from tagpr_rl.config.stages import (
    ChainsStage,
    DataStage,
    EvaluateStage,
    ModelStage,
    PrmuStage,
    PromptsStage,
    SftStage,
)
