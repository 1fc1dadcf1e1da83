"""What is asked of models outside of training, and for how long: a teacher's chains, their labels, an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tagpr_rl.config import ChainsStage, EndpointBlock, EvaluateStage, Recipe, prompt_styles
from tagpr_rl.config.data import PUBLISHED_QUESTIONS
from tagpr_rl.config.endpoints import CHAT_ROOM, LABEL_TOKENS
from tagpr_rl.config.placement import engine_count
from tagpr_rl.plan.engines import EngineSize, engine_parts, evaluation_engine, teacher_engine
from tagpr_rl.plan.hours import DECODE_EFFICIENCY, Times, generation_seconds
from tagpr_rl.plan.memory import GIB, Phase, compute_bytes, longest, policy_shape
from tagpr_rl.plan.shapes import Device, ModelShape, shape_of

GENERATION = ("LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7")
"""Tasks whose answer is a text: the teacher also answers them without a profile (chains.build)."""
WORLD_TASKS = 4
CHOICE_QUESTIONS = 200
"""Training questions on which the best of several prompts is chosen (stages.asking)."""
CLOSE_TOKENS = 16
"""Room for the end of a thought that was cut (stages.asking)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage that asks models takes."""

    phases: tuple[Phase, ...] = ()
    times: Times = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests of one sort to one model."""

    what: str
    count: int
    prompt: int
    """Tokens of a prompt, at most."""
    response: int
    """Tokens of a response, at most."""


def train_questions(recipe: Recipe, tasks: Iterable[str] | None = None) -> int:
    """Questions that are trained on, of these tasks (None = data.tasks): the world's own number, LaMP's published ones,
    of which `data.limit` keeps a part."""
    return round(_questions(recipe, tasks, held_out=False) * (1 - recipe.data.validation_fraction))


def held_out_questions(recipe: Recipe) -> int:
    """Questions that are held out for evaluation; see `train_questions`."""
    return _questions(recipe, None, held_out=True)


def _questions(recipe: Recipe, tasks: Iterable[str] | None, *, held_out: bool) -> int:
    data = recipe.data
    chosen = [task for task in data.tasks if tasks is None or task in tasks]
    if data.lamp_dir is None:
        users = data.world.held_out_users if held_out else data.world.train_users
        users = data.world.time_users if data.split == "time" else users
        counts = [users * data.world.questions_per_user // WORLD_TASKS] * len(chosen)
    else:
        counts = [PUBLISHED_QUESTIONS[task][held_out] for task in chosen if task in PUBLISHED_QUESTIONS]
    return sum(min(count, data.limit or count) for count in counts)


def teacher_requests(recipe: Recipe, stage: ChainsStage) -> dict[str, Asked]:
    """Role -> what the chains stage asks of a language model in that role, at most: every chain is well formed and
    labelled, and every record gives its pairs. Models of rules cost nothing."""
    data, blocks = recipe.data.prompt, stage.blocks()
    share = min(1.0, (stage.questions or math.inf) / train_questions(recipe))
    questions = round(share * train_questions(recipe))
    chains = (questions + int(stage.empty_profile_fraction * questions)) * stage.samples
    pairs = 2 * min(stage.max_pairs, questions)  # with another user's profile, and with none
    again = round(share * train_questions(recipe, GENERATION))
    if stage.keep.profile_evidence in ("answer", "either", "both"):
        again += questions
    asked: dict[str, Asked] = {}
    if (teacher := blocks.get("teacher")) is not None:
        asked["teacher"] = Asked("write chains", chains + again + pairs, data.max_tokens, teacher.max_tokens)
    if "labeller" in blocks:
        passes = 2 if stage.keep.min_agreement > 0 else 1
        response = LABEL_TOKENS * (stage.keep.max_steps + 1)
        asked["labeller"] = Asked("label steps", passes * (chains + pairs), CHAT_ROOM, response)
    return asked


def model_shape(recipe: Recipe, stage: ChainsStage, block: EndpointBlock) -> ModelShape | None:
    """The shape of a teacher's model in this run; None for one elsewhere, and for one that is not known here."""
    if block.kind == "openai":
        return None
    return policy_shape(recipe) if stage.init is not None else shape_of(str(block.model))


def chains_work(recipe: Recipe, stage: ChainsStage, device: Device | None) -> Work:
    """Engines and time of a chains stage, of the models in this run whose shape is known."""
    phases: list[Phase] = []
    times: list[tuple[str, float, str]] = []
    problems: list[str] = []
    asked = teacher_requests(recipe, stage)
    for role, block in stage.blocks().items():
        shape = model_shape(recipe, stage, block)
        if shape is None:
            continue
        engine = teacher_engine(recipe, role, block, shape)
        parts, fits, wrong = engine_parts(recipe, engine, device.memory_gib * GIB if device else None)
        phases.append(Phase(asked[role].what, tuple(parts)))
        problems += wrong
        if device is not None:
            times.append(asking_time(recipe, engine, fits, asked[role], device))
    return Work(tuple(phases), tuple(times), tuple(problems))


def evaluation_requests(recipe: Recipe, stage: EvaluateStage) -> tuple[Asked, ...]:
    """What an evaluation asks: every model by its prompts, the best of several chosen on training questions; controls;
    and the ends of thoughts that were cut, which are counted as none."""
    held_out = held_out_questions(recipe)
    questions = min(stage.questions or held_out, held_out)
    control = min(stage.control_questions or questions, questions)
    limits = recipe.data.prompt
    plain, thinking = len(stage.controls) * control, 0
    for name in stage.models:
        styles = prompt_styles(recipe, stage, name)
        each = questions + (CHOICE_QUESTIONS if len(styles) > 1 else 0)
        thinking += each * styles.count("thinking")
        plain += each * (len(styles) - styles.count("thinking"))
    asked = (
        Asked("answer", plain, limits.max_tokens, limits.max_response_tokens),
        Asked("answer with thinking", thinking, limits.max_tokens, stage.thinking_tokens),
    )
    return tuple(item for item in asked if item.count)


def evaluation_work(recipe: Recipe, stage: EvaluateStage, shape: ModelShape, device: Device | None) -> Work:
    """Engines and time of an evaluation."""
    asked = evaluation_requests(recipe, stage)
    thinks = any(item.response == stage.thinking_tokens for item in asked)
    length = longest(recipe) + (stage.thinking_tokens + CLOSE_TOKENS if thinks else 0)
    engine = evaluation_engine(recipe, shape, length)
    parts, fits, problems = engine_parts(recipe, engine, device.memory_gib * GIB if device else None)
    times = [asking_time(recipe, engine, fits, item, device) for item in asked] if device is not None else []
    return Work((Phase("generate", tuple(parts)),), tuple(times), problems)


def asking_time(recipe: Recipe, engine: EngineSize, fits: int, asked: Asked, device: Device) -> tuple[str, float, str]:
    """(what, seconds, arithmetic) of requests on all engines that the run has room for, `fits` sequences at a time."""
    count = engine_count(recipe.platform, recipe.placement, engine.tensor)
    seconds = generation_seconds(
        engine.shape, device, responses=asked.count, engines=count, tensor=engine.tensor, concurrent=fits,
        prompt=asked.prompt, response=asked.response, width=compute_bytes(recipe),
    )  # fmt: skip
    rule = (
        f"{asked.count:,} responses of {asked.response:,} tokens on {count} engine(s) of {engine.tensor} device(s), "
        f"{fits} at a time, {device.bandwidth_gbps:g} GB/s x {DECODE_EFFICIENCY:g}"
    )
    return asked.what, seconds, rule
