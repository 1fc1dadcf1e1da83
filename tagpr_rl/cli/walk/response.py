"""Hops 4 to 6 of the walk: the responses are parsed, scored and compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table
from rich.text import Text

from tagpr_rl.chains.teachers.canned import CannedReply, canned_replies, stand_in_prmu
from tagpr_rl.config import GrpoStage, Recipe
from tagpr_rl.report.page.names import reward_names
from tagpr_rl.report.page.terminal import Page
from tagpr_rl.reward.advantages.group import group_advantages
from tagpr_rl.reward.rubric import RewardOutput, Rubric
from tagpr_rl.tags.constraints import violations
from tagpr_rl.tags.grammar import parse
from tagpr_rl.types import LampRecord, ParseStatus, Prompt, TagprError

MAX_FAULTS = 4
"""Faults against the tag schema that are printed of one response."""
NamedStages = Sequence[tuple[str, GrpoStage]]


def grpo_stages(recipe: Recipe) -> list[tuple[str, GrpoStage]]:
    """The recipe's GRPO stages by name; the default guided stage when it has none."""
    stages = [(name, stage) for name, stage in recipe.stages.items() if isinstance(stage, GrpoStage)]
    return stages or [("defaults (the recipe has no GRPO stage)", GrpoStage(init="sft", prmu="prmu"))]


def replies_to(
    page: Page, recipe: Recipe, record: LampRecord, prompt: Prompt, respond: Callable[[Prompt], list[str]] | None
) -> list[CannedReply]:
    """The group of responses to the prompt: the live model's, or canned ones."""
    first = grpo_stages(recipe)[0][1]
    page.say(
        f"verl applies the chat template; vLLM samples G = {first.group_size} responses at temperature "
        f"{first.temperature:g}, each at most {recipe.data.prompt.max_response_tokens} tokens."
    )
    if respond is None:
        replies = canned_replies(record, prompt, page.schema, scripted=recipe.data.lamp_dir is None)
        page.say(f"Here: {len(replies)} canned responses, so that each kind of fault is seen once.")
        return replies
    replies = [CannedReply(f"response {i}", text) for i, text in enumerate(respond(prompt), start=1)]
    if not replies:
        raise TagprError("the live model returned no response; ask it for at least one")
    return replies


def parse_replies(page: Page, replies: Sequence[CannedReply]) -> None:
    """Hop 4: the parser's verdict on each response, and its faults against the tag schema."""
    page.hop(
        4,
        parse,
        "One parser for the filter, the reward, the evaluation and the report: "
        "a typed status with a reason, never a guess at what was meant.",
    )
    for reply in replies:
        parsed = parse(reply.text, page.schema)
        verdict = f"{reply.label}  ->  {parsed.status}"
        if parsed.status is not ParseStatus.OK:
            verdict += f" at character {parsed.offset} of {len(reply.text)}: {parsed.reason}"
        page.block(verdict, page.trace(reply.text))
        faults = violations(parsed.trace, page.schema) if parsed.trace else []
        for fault in faults[:MAX_FAULTS]:
            page.say(f"  - against the tag schema: {fault}")
        if len(faults) > MAX_FAULTS:
            page.say(f"  - and {len(faults) - MAX_FAULTS} more")


def score_replies(
    page: Page, record: LampRecord, replies: Sequence[CannedReply], stages: NamedStages
) -> list[list[float]]:
    """Hop 5: every reward component of every response. Returns the totals by stage, [stage][reply]."""
    page.hop(
        5,
        Rubric.score,
        "Every response gets every component; a malformed one has "
        "task = format = tag = 0. The weights differ by stage, the components do not.",
    )
    page.say(
        "PRMU is a trained network and is not run here. The prmu column is a stand-in (share of the "
        "response's words that the profile has), so that the sum can be followed."
    )
    outputs = [outputs_of(page, record, replies, stage) for _, stage in stages]
    shown = next((rows for rows in outputs if rows[0].prmu_status == "scored"), outputs[0])
    table = Table(box=None, pad_edge=False)
    table.add_column("response")
    for component in shown[0].components:
        table.add_column(component, justify="right")
    for name, stage in stages:
        page.say(f"{name}: total = {' + '.join(f'{term.weight:g} * {term.label}' for term in stage.terms)}")
        table.add_column(Text(f"total\n{name}"), justify="right")
    for i, reply in enumerate(replies):
        cells = [f"{value:.3f}" for value in shown[i].components.values()]
        totals = [f"{rows[i].total:.3f}" for rows in outputs]
        table.add_row(Text(short(reply)), *cells, *totals)
    page.block("out: RewardOutput for each response", table)
    output, (first, stage) = outputs[0][0], stages[0]
    addends = " + ".join(f"{term.weight:g} * {term.value(output.components):.3f}" for term in stage.terms)
    page.say(f"  first row, {first}: {addends} = {output.total:.3f}")
    meanings = Table.grid(padding=(0, 2))
    for part in reward_names(term for _, stage in stages for term in stage.terms)[1:]:
        meanings.add_row(Text(part.label, "bold"), Text(part.meaning))
    page.block("the components", meanings)
    return [[own.total for own in rows] for rows in outputs]


def outputs_of(page: Page, record: LampRecord, replies: Sequence[CannedReply], stage: GrpoStage) -> list[RewardOutput]:
    """The replies' rewards in one stage, with a stand-in for PRMU's score if the stage uses PRMU."""
    rubric, scored = Rubric(page.schema, stage.terms), stage.uses_prmu
    return [
        rubric.score(
            reply.text,
            task=record.task,
            gold=record.gold or "",
            prmu=stand_in_prmu(reply.text, record) if scored else None,
            prmu_status="scored" if scored else "off",
        )
        for reply in replies
    ]


def short(reply: CannedReply) -> str:
    """The word that names the reply."""
    return reply.label.partition(":")[0]


def compare_replies(
    page: Page, replies: Sequence[CannedReply], totals: Sequence[Sequence[float]], stages: NamedStages
) -> None:
    """Hop 6: the advantage of each response in its group, with the arithmetic written out."""
    page.hop(
        6,
        group_advantages,
        "A response is judged against the other responses to the same prompt: no value network. The trainer's hook "
        "calls the same function.",
    )
    for (name, stage), rewards in zip(stages, totals, strict=True):
        divisor = "" if stage.advantage.normalise == "none" else " / (std + 1e-6)"
        page.block(f"{name}: A = (R - mean){divisor}", "\n".join(advantage_lines(stage, replies, rewards)))


def advantage_lines(stage: GrpoStage, replies: Sequence[CannedReply], rewards: Sequence[float]) -> list[str]:
    """The group's mean, standard deviation and advantages under one stage's settings."""
    own = stage.advantage
    norm = own.normalise != "none"
    mean = sum(rewards) / len(rewards)
    addends = " + ".join(f"{r:.3f}" for r in rewards).replace("+ -", "- ")
    lines = [f"mean = ({addends}) / {len(rewards)} = {mean:.3f}"]
    spread = 0.0
    if len(rewards) > 1:
        spread = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
        lines.append(
            f"std  = sqrt(sum of (R - mean)^2 / {len(rewards) - 1}) = {spread:.3f}"
            + ("" if norm else "  (not divided by: advantage.normalise is none)")
        )
    if spread < 1e-9:
        lines.append("all rewards are equal (or the group has one response): every advantage is 0")
    sign, divisor = "+" if mean < 0 else "-", f" / ({spread:.3f} + 1e-6)" if norm else ""
    for reply, reward, advantage in zip(replies, rewards, group_advantages(rewards, norm_std=norm), strict=True):
        lines.append(f"A = ({reward:.3f} {sign} {abs(mean):.3f}){divisor} = {advantage:+.3f}   {short(reply)}")
    if own.credit == "step":
        lines.append(f"credit: step pays soundness and repetition, x {own.step_weight:g}, on each step's tokens")
    if own.normalise == "per_component":
        lines.append("normalise: per_component does this for each component, and divides the weighted sum once more")
    return lines
