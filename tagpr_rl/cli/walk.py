"""Prints every hop of one record, from LaMP's file to the report, on any laptop: no torch, no trained model.

Without a live model the group of responses is canned, but built from the record itself: the scripted teacher
writes a good and a wrong chain, and two faults are made on purpose.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.pretty import Pretty
from rich.table import Table
from rich.text import Text

from tagpr_rl.chains.teachers.canned import Reply, canned_replies, stand_in_prmu
from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.data.lamp import (
    load_folder,
    load_lamp,
    outputs_path,
    questions_path,
    splits_present,
    write_lamp,
)
from tagpr_rl.data.world.generate import WorldConfig, make_world
from tagpr_rl.data.world.rules import WORLD_TASKS
from tagpr_rl.prompts.prompt import build_official_prompt, build_prompt
from tagpr_rl.prompts.rankings import read_rankings
from tagpr_rl.prompts.retrieve import rank
from tagpr_rl.prompts.rows import to_row
from tagpr_rl.prompts.words import WordTokens, word_counter
from tagpr_rl.report.page.collect import uses_prmu
from tagpr_rl.report.page.html import build_report
from tagpr_rl.report.page.names import REWARD_COMPONENTS
from tagpr_rl.report.page.terminal import Page, definition, value_table, where
from tagpr_rl.reward.advantages.group import group_advantages
from tagpr_rl.reward.rubric import Rubric, Weights
from tagpr_rl.run.layout import RunDir
from tagpr_rl.tags.constraints import violations
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import default_schema, load_schema
from tagpr_rl.types import LampRecord, ParseStatus, Prompt, RewardBreakdown, TagprError

Respond = Callable[[Prompt], list[str]]
MOST_FAULTS = 4


def walk(recipe: Recipe, record: int, *, respond: Respond | None = None, console: Console) -> None:
    """Print the nine hops for the training record number `record` (from 0).

    `respond` gives the group of responses to the prompt; None means canned ones. Raises TagprError for a
    record that does not exist or data that cannot be read.
    """
    schema = load_schema(recipe.schema_file) if recipe.schema_file else default_schema()
    page = Page(console, schema, recipe.model.thought_prefilled)
    page.say(
        f"One record through the whole method: recipe '{recipe.name}', training record {record}, "
        + ("canned responses built from the record itself." if respond is None else "a live model's responses.")
    )
    found = _hop_load(page, recipe, record)
    prompt = _hop_prompt(page, recipe, found)
    replies = _hop_row(page, recipe, found, prompt, respond, record)
    _hop_parse(page, replies)
    stages = grpo_stages(recipe)
    totals = _hop_score(page, found, replies, stages)
    _hop_advantage(page, replies, totals, stages)
    _hop_update(page, stages, recipe.data.prompt.max_response_tokens)
    _hop_publish(page, recipe)
    _hop_report(page, recipe)


def _hop_load(page: Page, recipe: Recipe, index: int) -> LampRecord:
    page.hop(
        1,
        "load_lamp",
        where(load_lamp),
        "LaMP's two JSON files become records: a question, its user's profile and the gold answer.",
    )
    record, source = find_record(recipe, index)
    page.block("in", source)
    page.block("out: LampRecord", Pretty(replace(record, profile=record.profile[:2]), max_string=200))
    page.say(f"  (profile: {len(record.profile)} items of type ProfileItem; at most 2 are shown)")
    return record


def find_record(recipe: Recipe, index: int) -> tuple[LampRecord, str]:
    """(record, where it came from): the index-th training question, over the recipe's tasks.

    The embedded world is drawn only as far as needed (its users are independent of each other) and goes
    through LaMP's file format like any other data.
    """
    data = recipe.data
    if data.lamp_dir is not None:
        left = index
        for task in data.tasks:
            split = next(iter(splits_present(data.lamp_dir, task)), "train")
            records = load_folder(data.lamp_dir, (task,), split)
            if 0 <= left < len(records):
                return records[left], f"{questions_path(data.lamp_dir, task, split)}, record {left}"
            left -= len(records)
        raise TagprError(f"--record {index}: there are {index - left} records; use 0 to {index - left - 1}")
    block = data.world
    tasks = [task for task in WORLD_TASKS if task in data.tasks]
    if len(tasks) != len(data.tasks):
        raise TagprError(f"data.tasks: the embedded world has {', '.join(WORLD_TASKS)}; others need data.lamp_dir")
    per_user = block.questions_per_user // len(WORLD_TASKS) * len(tasks)
    time = data.split == "time"
    total = (block.time_users if time else block.train_users) * per_user
    if not 0 <= index < total:
        raise TagprError(f"--record {index}: the world has {total} training records; use 0 to {total - 1}")
    config = WorldConfig(
        seed=block.seed,
        train_users=block.train_users if time else index // per_user + 1,
        dev_users=block.held_out_users,
        time_users=block.time_users if time else 0,
        questions_per_user=block.questions_per_user,
    )
    drawn = [r for r in make_world(config).records("train", data.split) if r.task in tasks][index]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_lamp(folder, drawn.task, "train", [drawn])
        files = (questions_path(folder, drawn.task, "train"), outputs_path(folder, drawn.task, "train"))
        loaded = load_lamp(*files, "train", task=drawn.task)[0]
    source = f"{drawn.task}/train_questions.json and train_outputs.json of the embedded world"
    return loaded, f"{source}, seed {block.seed}, {data.split} split"


def _hop_prompt(page: Page, recipe: Recipe, record: LampRecord) -> Prompt:
    retrieval, limit = recipe.data.retrieval, recipe.data.prompt.max_tokens
    page.hop(
        2,
        "build_prompt",
        where(build_prompt),
        "The profile items nearest to the question are retrieved and "
        "written above it. A profile can never forge a tag: its markup is neutralised.",
    )
    rankings = read_rankings(retrieval.path, recipe.data.tasks) if retrieval.path is not None else None
    items = rank(record, retrieval.k, retrieval.method, retrieval.seed, ties=retrieval.ties, rankings=rankings)
    page.block(
        "in",
        f"rank(record, k={retrieval.k}, method={retrieval.method!r}) -> {len(items)} of "
        f"{len(record.profile)} items; data.prompt.max_tokens = {limit}",
    )
    tiny = recipe.model.path is None
    counter = word_counter(page.schema if tiny else None)
    if recipe.data.prompt.style == "official":
        prompt = build_official_prompt(record, items, max_tokens=limit, count_tokens=counter, tokens=WordTokens())
    else:
        prompt = build_prompt(
            record, items, style="reasoning", schema=page.schema, max_tokens=limit, count_tokens=counter
        )
    page.block(
        f"out: Prompt, {len(prompt.messages)} chat message, {prompt.n_tokens} words, items "
        f"{list(prompt.item_ids)}, {prompt.items_dropped} dropped",
        Text("\n\n".join(message["content"] for message in prompt.messages)),
    )
    page.say(
        "  (no tokenizer here: words are counted instead of tokens"
        + (", each constant sentence as one, as in the tiny model's vocabulary)" if tiny else ")")
    )
    return prompt


def _hop_row(
    page: Page, recipe: Recipe, record: LampRecord, prompt: Prompt, respond: Respond | None, index: int
) -> list[Reply]:
    page.hop(
        3,
        "to_row, then verl and vLLM",
        where(to_row),
        "The row that verl reads from train.parquet. "
        "data_source, ground_truth and extra_info reach the response scorer as they stand here.",
    )
    row = to_row(record, prompt, index)
    page.block("out: dict", value_table(row))
    first = grpo_stages(recipe)[0][1]
    page.say(
        f"verl applies the chat template; vLLM samples G = {first.group_size} responses at temperature "
        f"{first.temperature:g}, each at most {recipe.data.prompt.max_response_tokens} tokens."
    )
    if respond is None:
        replies = canned_replies(record, prompt, page.schema, scripted=recipe.data.lamp_dir is None)
        page.say(f"Here: {len(replies)} canned responses, so that each kind of fault is seen once.")
    else:
        replies = [Reply(f"response {i}", text) for i, text in enumerate(respond(prompt), start=1)]
        if not replies:
            raise TagprError("the live model returned no response; ask it for at least one")
    return replies


def _hop_parse(page: Page, replies: Sequence[Reply]) -> None:
    page.hop(
        4,
        "parse_trace",
        where(parse),
        "One parser for the filter, the reward, the evaluation and the report: "
        "a typed status with a reason, never a guess at what was meant.",
    )
    for reply in replies:
        parsed = parse(reply.text, page.schema, prefilled=page.prefilled)
        verdict = f"{reply.label}  ->  {parsed.status}"
        if parsed.status is not ParseStatus.OK:
            verdict += f" at character {parsed.offset} of {len(reply.text)}: {parsed.reason}"
        page.block(verdict, page.trace(reply.text))
        faults = violations(parsed.trace, page.schema) if parsed.trace else []
        for fault in faults[:MOST_FAULTS]:
            page.say(f"  - against the tag schema: {fault}")
        if len(faults) > MOST_FAULTS:
            page.say(f"  - and {len(faults) - MOST_FAULTS} more")


def grpo_stages(recipe: Recipe) -> list[tuple[str, GrpoStage]]:
    """The recipe's GRPO stages by name; the default guided stage when it has none."""
    found = [(name, stage) for name, stage in recipe.stages.items() if isinstance(stage, GrpoStage)]
    return found or [("defaults (the recipe has no GRPO stage)", GrpoStage(init="sft", prmu="prmu"))]


def _hop_score(
    page: Page, record: LampRecord, replies: Sequence[Reply], stages: Sequence[tuple[str, GrpoStage]]
) -> list[list[float]]:
    """Totals by stage, [stage][reply]."""
    page.hop(
        5,
        "Rubric.score",
        where(Rubric.score),
        "Every response gets every component; a malformed one has "
        "task = format = tag = 0. The weights differ by stage, the components do not.",
    )
    page.say("total = task * format + alpha * tag + beta * prmu + gamma * repetition")
    page.say(
        "PRMU is a trained network and is not run here. The prmu column is a stand-in (share of the "
        "response's words that the profile has), so that the sum can be followed."
    )
    breakdowns: list[list[RewardBreakdown]] = []
    for _, stage in stages:
        weights = Weights(stage.weights.alpha, stage.weights.beta, stage.weights.gamma)
        rubric = Rubric(page.schema, weights, page.prefilled)
        scored = uses_prmu(stage)
        breakdowns.append(
            [
                rubric.score(
                    reply.text,
                    task=record.task,
                    gold=record.gold or "",
                    prmu=stand_in_prmu(reply.text, record) if scored else None,
                    prmu_status="scored" if scored else "off",
                )
                for reply in replies
            ]
        )
    table = Table(box=None, pad_edge=False)
    table.add_column("response")
    for part in REWARD_COMPONENTS[1:]:
        table.add_column(part.label, justify="right")
    for name, stage in stages:
        w = stage.weights
        page.say(f"{name}: alpha = {w.alpha:g}, beta = {w.beta:g}, gamma = {w.gamma:g}")
        table.add_column(Text(f"total\n{name}"), justify="right")
    shown = next((rows for rows in breakdowns if rows[0].prmu_status == "scored"), breakdowns[0])
    for i, reply in enumerate(replies):
        cells = [f"{getattr(shown[i], part.key):.3f}" for part in REWARD_COMPONENTS[1:]]
        totals = [f"{rows[i].total:.3f}" for rows in breakdowns]
        table.add_row(Text(reply.label.partition(":")[0]), *cells, *totals)
    page.block("out: RewardBreakdown for each response", table)
    b, (first, stage) = breakdowns[0][0], stages[0]
    w = stage.weights
    page.say(
        f"  first row, {first}: {b.task:.3f} * {b.format:g} + {w.alpha:g} * {b.tag:.3f} + {w.beta:g} * "
        f"{b.prmu:.3f} + {w.gamma:g} * {b.repetition:.3f} = {b.total:.3f}"
    )
    meanings = Table.grid(padding=(0, 2))
    for part in REWARD_COMPONENTS[1:]:
        meanings.add_row(Text(part.label, "bold"), Text(part.meaning))
    page.block("the components", meanings)
    return [[b.total for b in rows] for rows in breakdowns]


def _hop_advantage(
    page: Page,
    replies: Sequence[Reply],
    totals: Sequence[Sequence[float]],
    stages: Sequence[tuple[str, GrpoStage]],
) -> None:
    page.hop(
        6,
        "group_advantages",
        where(group_advantages),
        "A response is judged against the other responses to "
        "the same prompt: no value network. The trainer's hook (backend.advantages) calls the same function.",
    )
    for (name, stage), rewards in zip(stages, totals, strict=True):
        norm = stage.advantage.normalise != "none"
        advantages = group_advantages(rewards, norm_std=norm)
        mean = sum(rewards) / len(rewards)
        listed = " + ".join(f"{r:.3f}" for r in rewards).replace("+ -", "- ")
        lines = [f"mean = ({listed}) / {len(rewards)} = {mean:.3f}"]
        spread = 0.0
        if len(rewards) > 1:
            spread = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
            lines.append(
                f"std  = sqrt(sum of (R - mean)^2 / {len(rewards) - 1}) = {spread:.3f}"
                + ("" if norm else "  (not divided by: advantage.normalise is none)")
            )
        if spread < 1e-9:
            lines.append("all rewards are equal (or the group has one response): every advantage is 0")
        for reply, reward, advantage in zip(replies, rewards, advantages, strict=True):
            sign, under = "+" if mean < 0 else "-", f" / ({spread:.3f} + 1e-6)" if norm else ""
            label = reply.label.partition(":")[0]
            lines.append(f"A = ({reward:.3f} {sign} {abs(mean):.3f}){under} = {advantage:+.3f}   {label}")
        own = stage.advantage
        if own.credit == "step":
            lines.append(f"credit: step pays soundness and repetition, x {own.step_weight:g}, on each step's tokens")
        if own.normalise == "per_component":
            lines.append(
                "normalise: per_component does this for each component, and divides the weighted sum once more"
            )
        page.block(f"{name}: A = (R - mean){' / (std + 1e-6)' if norm else ''}", "\n".join(lines))


def _hop_update(page: Page, stages: Sequence[tuple[str, GrpoStage]], tokens: int) -> None:
    page.hop(
        7,
        "verl's update",
        definition("grpo_overrides", "backend"),
        "Every token of a response carries the response's advantage; the ratio's clip keeps each step small. "
        "The loss is verl 0.9.1's compute_policy_loss_vanilla (verl/trainer/ppo/core_algos.py).",
    )
    page.say(
        "ratio_t = pi_new(token_t) / pi_old(token_t)\n"
        "clip_t  = ratio_t kept within [1 - clip_low, 1 + clip_high]\n"
        "loss    = - mean over tokens of min(ratio_t * A, clip_t * A)\n"
        "          (where A < 0, at most 3 |A| a token: verl's dual clip)\n"
        "          + kl_coef * KL(policy || the stage's start policy)"
    )
    for name, s in stages:
        batch = s.prompts_per_step * s.group_size
        lines = [
            f"one step: {s.prompts_per_step} prompts x {s.group_size} responses = {batch}, at most {tokens} "
            f"tokens each, in {s.mini_batches} update(s) of {batch // s.mini_batches}; {s.steps} steps",
            f"clip: the ratio counts within [{1 - s.clip_low:g}, {1 + s.clip_high:g}]; averaged by "
            f"{s.loss_agg}; AdamW, lr {s.lr:g}; gradient norm at most {s.max_grad_norm:g}",
            f"kl_coef = {s.kl_coef:g}" + ("" if s.kl_coef else ": no KL term and no reference model"),
        ]
        if s.loss == "gspo":
            lines.append("loss: gspo; ratio_t is the whole response's, exp(mean over its tokens of log ratio_t)")
        if uses_prmu(s):
            lines.append(f"a response without a PRMU score after {s.prmu_timeout_s:g} s is masked out of the update")
        page.block(name, "\n".join(lines))


def _hop_publish(page: Page, recipe: Recipe) -> None:
    page.hop(
        8,
        "publish",
        definition("publish", "stages", "backend"),
        "After its last step a stage writes its weights "
        "and tokenizer for the next stage, then its manifest. Weights only: optimizer, schedule, data order "
        "and reference policy start afresh.",
    )
    run = RunDir(recipe.out / recipe.name)
    lines = []
    for index, (name, stage) in enumerate(recipe.stages.items()):
        init = getattr(stage, "init", None)
        if stage.kind in ("model", "sft", "grpo", "prmu"):
            start = f"starts from {init}" if init else "start weights"
            directory = run.stage(index, name)
            lines.append(f"{name:<10} {start:<22} -> {directory.root if stage.kind == 'prmu' else directory.hf}")
    page.block("out", "\n".join(lines))


def _hop_report(page: Page, recipe: Recipe) -> None:
    page.hop(
        9,
        "write_report",
        where(build_report),
        "The evaluation on held-out users and every stage's files become one page.",
    )
    run = RunDir(recipe.out / recipe.name)
    own = {"data": "data.json", "chains": "chains.json", "prmu": "prmu.json", "evaluate": "eval.json"}
    own["prompts"] = "prompts.json"
    more = {"grpo": "metrics.jsonl, rollouts/step_*.jsonl", "evaluate": "responses/*.jsonl"}
    more |= {"sft": "metrics.jsonl", "prmu": "metrics.jsonl"}
    lines = []
    for index, (name, stage) in enumerate(recipe.stages.items()):
        parts = ("manifest.json", own.get(stage.kind), more.get(stage.kind))
        lines.append(f"{run.stage(index, name).root.name}/: {', '.join(part for part in parts if part)}")
    page.block(f"in: {run.root}/", "\n".join(lines))
    page.block("out", f"{run.report_json} (numbers, samples) and {run.report_html} (tables, plots, coloured chains)")
