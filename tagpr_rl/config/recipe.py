"""A whole run as one typed, closed value, and how its stages fit together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from tagpr_rl.config.base import Closed, PathText, RunName, UserPath, worded
from tagpr_rl.config.cluster import ClusterBlock
from tagpr_rl.config.data import DataBlock
from tagpr_rl.config.grpo import GrpoStage, rollout_mistakes, validation_mistakes
from tagpr_rl.config.kinds import KINDS, Stage, named_stages, stages_read
from tagpr_rl.config.log import Loggers
from tagpr_rl.config.model import LoraBlock, ModelBlock
from tagpr_rl.config.placement import PlacementBlock, placement_mistakes
from tagpr_rl.config.platform import BudgetBlock, PlatformBlock, TrainingBlock
from tagpr_rl.config.stage import StageBase, TrainingStage
from tagpr_rl.config.stages import EvaluateStage, ModelStage, SftStage
from tagpr_rl.types import did_you_mean


class FromRun(Closed):
    """Another run whose finished stages a new run starts from; the option `--from RUN[:STAGE]` sets it."""

    run: PathText
    """The other run: its folder or its URL."""
    until: str | None = None
    """Take every stage up to this one, and stop if one of them differs; null = take every stage that is equal."""


class Recipe(Closed):
    """A whole run."""

    name: RunName
    """Name of the run, which is also its folder's name below `out`."""
    out: UserPath = Path("runs")
    """Folder of the runs. A URL (`s3://bucket/prefix`) means: work in `runs/` and set `mirror` to the URL."""
    mirror: Annotated[str, worded(r"[a-z][a-z0-9+.:-]*://[^\s$\\]+", "a URL such as s3://bucket/runs")] | None = None
    """Any URL of fsspec; finished stages and step checkpoints are copied to `<mirror>/<name>`."""
    from_run: FromRun | None = None
    """Start from another run's finished stages; null = make every stage."""
    data: DataBlock = DataBlock()
    """The questions, how they are split, and how they become prompts."""
    schema_file: UserPath | None = None
    """File of the tag schema (YAML or JSON); null = the built-in nine tags."""
    model: ModelBlock = ModelBlock()
    """The policy's weights: a folder, a hub name, or a tiny model made for the run."""
    platform: PlatformBlock = PlatformBlock()
    """The machine: device, number of devices, memory of the processes."""
    placement: PlacementBlock = PlacementBlock()
    """Which devices rollouts and PRMU get beside the policy's."""
    training: TrainingBlock = TrainingBlock()
    """How a training process uses its device: attention, sharding, offload."""
    lora: LoraBlock | None = None
    """Train low-rank adapters in SFT and GRPO stages; null = all weights."""
    budget: BudgetBlock = BudgetBlock()
    """The figures that `tagpr plan` computes memory and hours with."""
    cluster: ClusterBlock = ClusterBlock()
    """Machines that manifests are rendered for and runs are submitted to."""
    log: Loggers = Loggers()
    """The trackers that get the metrics."""
    stages: dict[str, Stage] = Field(min_length=1)
    """Stage name -> its block, in the order in which the stages run."""

    @model_validator(mode="before")
    @classmethod
    def _out_may_be_a_url(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        out, mirror = raw.get("out"), raw.get("mirror")
        if isinstance(out, str) and "://" in out:
            if mirror is not None:
                raise ValueError(f"out={out} and mirror={mirror}: give one URL, and a folder for the other")
            raw = {key: value for key, value in raw.items() if key != "out"} | {"mirror": out}
        if "@" in str(raw.get("mirror") or "").partition("://")[2].partition("/")[0]:
            raise ValueError("mirror: a login stands in the URL; credentials belong in the environment")
        return raw

    @model_validator(mode="after")
    def _stages_fit(self) -> Recipe:
        """Every stage that another one reads must come before it and be of a fitting kind."""
        mistakes: list[str] = []
        earlier: dict[str, StageBase] = {}
        for name, stage in self.stages.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                mistakes.append(f"stages.{name}: a stage name is lower-case letters, digits and _")
            mistakes += _reference_mistakes(name, stage, earlier)
            if isinstance(stage, GrpoStage):
                mistakes += stage_limits_mistakes(name, stage, self.data)
                mistakes += rollout_mistakes(f"stages.{name}", stage, earlier, self.placement.rollout)
                mistakes += validation_mistakes(f"stages.{name}", stage, self.data, self.placement.rollout)
            if isinstance(stage, SftStage) and stage.dataset == "both" and self.data.prompt.style == "official":
                mistakes.append(
                    f"stages.{name}.dataset: both would teach two responses to one prompt, because official prompts "
                    "are the same with a thought and without; use chains or answers, or another data.prompt.style"
                )
            shuffled = isinstance(stage, EvaluateStage) and "shuffled" in stage.controls
            if shuffled and self.data.retrieval.method == "file":
                mistakes.append(
                    f"stages.{name}.controls: shuffled profiles cannot be ranked by data.retrieval.path, which "
                    "knows each user's own items only; set controls: [empty] or another retrieval.method"
                )
            earlier[name] = stage
        if self.from_run is not None and self.from_run.until not in (None, *self.stages):
            until = str(self.from_run.until)
            hint = did_you_mean(until, self.stages, otherwise=f"the stages are {', '.join(self.stages)}")
            mistakes.append(f"from_run.until: no stage is called '{until}'; {hint}")
        longest = self.data.prompt.max_tokens + self.data.prompt.max_response_tokens
        blocks = (self.platform, self.placement, self.training, self.lora)
        mistakes += placement_mistakes(*blocks, self.stages, longest)
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self


def _reference_mistakes(name: str, stage: StageBase, earlier: Mapping[str, StageBase]) -> list[str]:
    """What is wrong with the stages that the stage `name` reads, given the stages before it."""
    mistakes = []
    for key, other in named_stages(stage):
        allowed = KINDS[stage.kind].names[key]
        if other not in earlier:
            hint = f"; {near}" if (near := did_you_mean(other, earlier)) else ""
            mistakes.append(f"stages.{name}.{key}: no earlier stage is called '{other}'{hint}")
        elif (kind := earlier[other].kind) not in allowed:
            mistakes.append(f"stages.{name}.{key}: stage '{other}' is of kind {kind}, not {' or '.join(allowed)}")
    before = {other.kind for other in earlier.values()}
    missing = sorted(set(KINDS[stage.kind].reads(stage)) - before)
    return mistakes + [f"stages.{name}: a stage of kind '{kind}' must come before it" for kind in missing]


def nearest(recipe: Recipe, name: str, kind: str) -> str | None:
    """The nearest stage of a kind before the stage `name`, or None if there is none."""
    names = list(recipe.stages)
    before = reversed(names[: names.index(name)])
    return next((other for other in before if recipe.stages[other].kind == kind), None)


def upstream(recipe: Recipe, name: str) -> tuple[str, ...]:
    """Earlier stages whose output this stage reads, in recipe order."""
    stage = recipe.stages[name]
    read = {*stages_read(stage), *(nearest(recipe, name, kind) for kind in KINDS[stage.kind].reads(stage))}
    names = list(recipe.stages)
    return tuple(other for other in names[: names.index(name)] if other in read)


def needed_for(recipe: Recipe, name: str) -> tuple[str, ...]:
    """The stage itself and every earlier stage that its output rests on, in recipe order."""
    needed = {name}
    for other in reversed(recipe.stages):
        if other in needed:
            needed.update(upstream(recipe, other))
    return tuple(other for other in recipe.stages if other in needed)


def training_steps(stage: StageBase) -> int:
    """Steps of a stage that trains; 0 for any other stage."""
    return stage.steps if isinstance(stage, TrainingStage) else 0


def stage_limits_mistakes(name: str, stage: GrpoStage, data: DataBlock) -> list[str]:
    """What a GRPO stage asks for that the recipe's data cannot give: longer texts, other tasks."""
    where, prompt = f"stages.{name}", data.prompt
    limits = (
        ("max_prompt_tokens", stage.max_prompt_tokens, prompt.max_tokens, "data.prompt.max_tokens"),
        ("max_response_tokens", stage.max_response_tokens, prompt.max_response_tokens,
         "data.prompt.max_response_tokens"),
    )  # fmt: skip
    mistakes = [
        f"{where}.{key}: {own} is above {what}={most}; raise that one or lower this"
        for key, own, most, what in limits
        if own is not None and own > most
    ]
    filtered = (stage.filter.tasks or ()) if stage.filter is not None else ()
    mistakes += [
        f"{where}.filter.tasks: '{task}' is none of data.tasks ({', '.join(data.tasks)})"
        for task in filtered
        if task not in data.tasks
    ]
    return mistakes


def stage_limits(recipe: Recipe, stage: GrpoStage) -> tuple[int, int]:
    """(tokens of a prompt, tokens of a response) at most, in a GRPO stage."""
    prompt = recipe.data.prompt
    return stage.max_prompt_tokens or prompt.max_tokens, stage.max_response_tokens or prompt.max_response_tokens


def prompt_style(recipe: Recipe, name: str) -> str:
    """How the weights of stage `name` are to be asked: "direct" if they were taught direct answers, else "reasoning".

    With `data.prompt.style: official` the text is LaMP's either way, and "direct" tells the template not to think.
    """
    return "direct" if answers_directly(recipe, name) else "reasoning"


def prompt_styles(recipe: Recipe, stage: EvaluateStage, name: str) -> tuple[str, ...]:
    """The prompts that `stage` asks model `name` with. Of several the best one is chosen on training questions."""
    if name == stage.models[0] and stage.base_prompts is not None:
        return stage.base_prompts
    if isinstance(recipe.stages[name], ModelStage) and recipe.model.path is not None:
        return ("direct", "thinking") if recipe.data.prompt.style == "official" else ("direct", "thinking", "reasoning")
    return (prompt_style(recipe, name),)


def answers_directly(recipe: Recipe, name: str) -> bool:
    """Whether the weights of stage `name` were last taught answers without a thought. GRPO teaches thoughts, whatever
    it starts from: its prompts ask for them."""
    stage = recipe.stages[name]
    return isinstance(stage, SftStage) and stage.dataset in ("direct", "answers")
