"""A record and its retrieved items -> the chat messages the model reads, within a token limit.

There are four styles. `official` is LaMP's published prompt. `reasoning`, `direct` and `thinking` have one constant
instruction, one line per item (LaMP's item template), then LaMP's input; they differ only in the instruction.
compact.py has a shorter form of `reasoning` and `direct`.
`build_prompt` keeps whole items, best first, and leaves out the rest. `build_official_prompt` shares the profile's
budget among the items and cuts each, as upstream does.
"""

from __future__ import annotations

import bisect
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Literal

from tagpr_rl.data.tasks import TASKS, literals
from tagpr_rl.prompts.official import Tokens, official_text
from tagpr_rl.tags.grammar import neutralise
from tagpr_rl.tags.schema import MAX_STEPS, TagSchema, TagSpec
from tagpr_rl.types import LampRecord, ProfileItem, Prompt, TagprError

Style = Literal["reasoning", "direct", "thinking", "official"]
Messages = tuple[Mapping[str, str], ...]
CountTokens = Callable[[Sequence[Mapping[str, str]]], int]

PROFILE_HEADER = "The user's history, most relevant first:"
NO_PROFILE = "The user's history is empty."
QUESTION_HEADER = "The question:"

DIRECT_INSTRUCTION = (
    "Answer the question at the end as this one user would want it answered. Below is the user's history: "
    "infer the user's preferences from it. Write the answer only, without thought, tags or explanation."
)
THINKING_INSTRUCTION = (
    "Answer the question at the end as this one user would want it answered. Below is the user's history: "
    "infer the user's preferences from it. First think between <think> and </think>. After </think> write the "
    "answer only, without explanation."
)
"""For a model that was not trained here: it thinks in its own way, without our tags."""
ORDINARY: Mapping[str, str] = {"direct": DIRECT_INSTRUCTION, "thinking": THINKING_INSTRUCTION}
"""Style -> its instruction, for the styles without tags."""


# Chat markup that is not `<name>`: `<|..|>` (ChatML), the same with wide bars (DeepSeek), `[INST]` (Mistral).
_CHAT_MARKUP = re.compile(
    r"<(?=[|\uff5c])|(?<=[|\uff5c])>|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
)
_HARMLESS = {"<": "\u2039", ">": "\u203a", "[": "\u2045"}


def clean(text: str) -> str:
    """`neutralise`, and chat markup such as `<|im_start|>` broken too: one bracket becomes a look-alike.

    Text without markup comes back unchanged. Idempotent.
    """
    return _CHAT_MARKUP.sub(lambda match: _HARMLESS[match[0]], neutralise(text))


def reasoning_instruction(schema: TagSchema) -> str:
    """The instruction of the `reasoning` style: the response grammar, every tag with its purpose, and every rule of
    `tags.constraints`. A thought keeps what it says if and only if `violations` finds nothing.

    One constant string without line breaks per schema, so that a word-level tokenizer can hold it as one
    token.
    """
    tags = "; ".join(f"<{tag.name}> {_one_line(tag.purpose).rstrip('.')} ({_rules(tag)})" for tag in schema.tags)
    if any(tag.before for tag in schema.tags):
        tags += (
            ". Before means that the tag's first step comes before the first step of each of those tags that is used"
        )
    if sum(tag.max_count for tag in schema.tags) > MAX_STEPS:
        tags += f". A thought has at most {MAX_STEPS} steps"
    return (
        "Answer the question at the end as this one user would want it answered. Below is the user's "
        "history: infer the user's preferences from it. First think between <think> and </think>. The "
        "thought is a sequence of steps, each written as <tag>text</tag> with one of the tags below; steps "
        "are not nested, each has words and does not (nearly) repeat an earlier one, and nothing stands between "
        f"them. After </think> write the answer only. The tags: {tags}."
    )


def _rules(tag: TagSpec) -> str:
    return tag.occurrences + (f"; before {', '.join(tag.before)}" if tag.before else "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def direct_messages(messages: Sequence[Mapping[str, str]], schema: TagSchema) -> Messages:
    """The messages of a `reasoning` prompt as `direct` ones: another instruction, the same items and question.

    TagprError for a prompt that does not begin with the schema's instruction, as one of another schema or version.
    """
    return with_instruction(
        messages,
        reasoning_instruction(schema),
        DIRECT_INSTRUCTION,
        f"the instruction of tag schema {schema.version!r}: its chains were made with another schema",
    )


def with_instruction(messages: Sequence[Mapping[str, str]], old: str, new: str, what: str) -> Messages:
    """The messages with the instruction `old` replaced by `new`. TagprError, naming `what`, if they do not begin with
    `old`."""
    (turn,) = messages
    if not turn["content"].startswith(old):
        raise TagprError(
            f"the prompt {turn['content'][:60]!r}... does not begin with {what} or an older version; make them anew"
        )
    return user_turn(new + turn["content"].removeprefix(old))


def prompt_phrases(schema: TagSchema) -> tuple[str, ...]:
    """Every constant phrase that a prompt may contain, stripped, longest first, without repeats.

    All else in a prompt is text of the records (and the words `and`, `is`), so a tiny word-level tokenizer may make
    each phrase one token.
    """
    texts = {reasoning_instruction(schema), *ORDINARY.values(), PROFILE_HEADER, NO_PROFILE, QUESTION_HEADER}
    for spec in TASKS.values():
        for template in (spec.input_template, spec.item_template):
            texts |= {part.strip(' "') for part in literals(template)}
        texts |= {part.strip(" .") for part in literals(spec.assembly)}
    # A lone word ("is") stays an ordinary word: as an added token it would also match inside other words.
    phrases = (text for text in texts if text and not text.isalpha())
    return tuple(sorted(phrases, key=lambda text: (-len(text), text)))


def build_prompt(
    record: LampRecord,
    items: Sequence[ProfileItem],
    *,
    style: str,
    schema: TagSchema,
    max_tokens: int,
    count_tokens: CountTokens,
) -> Prompt:
    """The prompt of one record.

    `items` are the retrieved ones, best first; the least relevant are left out until the prompt has at most
    `max_tokens` tokens. If the question alone is too long, its end is cut, but never its constant beginning.
    `count_tokens(messages)` is the length after the chat template. It must not fall if text is added, and it is called
    O(log len(items) + log len(input)) times. All texts of the record pass `clean`, so they cannot forge a tag or chat
    markup. Raises TagprError if not even the instruction fits.
    """
    lines = [_item_line(record.task, item, style) for item in items]
    question = clean(record.input)

    def messages(kept: int, text: str) -> Messages:
        return _messages(record.task, lines[:kept], text, style, schema)

    head = TASKS[record.task].input_head(question)
    return fit_prompt(
        record, items, head, question, messages, style=style, max_tokens=max_tokens, count_tokens=count_tokens
    )


def fit_prompt(
    record: LampRecord,
    items: Sequence[ProfileItem],
    head: str,
    question: str,
    messages: Callable[[int, str], Messages],
    *,
    style: str,
    max_tokens: int,
    count_tokens: CountTokens,
) -> Prompt:
    """The prompt with as many items, and then as much of the question, as `max_tokens` allows.

    Args:
        head: the constant beginning of `question`, which is never cut.
        messages: (number of items, text of the question) -> the chat.
        style: its name in the error.

    Raises TagprError if not even the chat without items and with the bare head fits.
    """

    def fits(kept: int, text: str) -> bool:
        return count_tokens(messages(kept, text)) <= max_tokens

    kept = _most_items(len(items), lambda count: fits(count, question))
    text = question
    if kept < 0:
        kept = 0
        text = head + _longest_prefix(question[len(head) :], lambda tail: fits(0, head + tail))
        if text == head:
            bare = count_tokens(messages(0, head))
            raise TagprError(
                f"record {record.id!r} ({record.task}, style {style}): the prompt needs {bare} tokens before the first "
                f"word of the question's text, and the limit max_tokens is {max_tokens}; raise the limit"
            )
    final = messages(kept, text)
    return Prompt(
        record_id=record.id,
        task=record.task,
        user_id=record.user_id,
        messages=final,
        item_ids=tuple(item.id for item in items[:kept]),
        items_dropped=len(items) - kept,
        question_cut=text != question,
        n_tokens=count_tokens(final),
    )


def build_official_prompt(
    record: LampRecord,
    items: Sequence[ProfileItem],
    *,
    max_tokens: int,
    count_tokens: CountTokens,
    tokens: Tokens,
) -> Prompt:
    """LaMP's published prompt of one record with its token budget (official.py), as one chat message.

    `max_tokens` is the limit after the chat template, whose own tokens are taken off first. All texts pass `clean`;
    text without markup is LaMP's to the letter. Raises TagprError if the template alone is over the limit.
    """
    limit = max_tokens - count_tokens(user_turn(""))
    while limit > 0:
        official = official_text(record, items, limit, tokens)
        messages = user_turn(clean(official.text))
        over = count_tokens(messages) - max_tokens
        if over <= 0:
            return Prompt(
                record_id=record.id,
                task=record.task,
                user_id=record.user_id,
                messages=messages,
                item_ids=tuple(item.id for item in items[: official.n_items]),
                items_dropped=len(items) - official.n_items,
                question_cut=official.question_cut,
                n_tokens=over + max_tokens,
            )
        limit -= over  # template and text may share no token, or cleaned text may need more of them
    raise TagprError(
        f"record {record.id!r} ({record.task}): the chat template alone needs {count_tokens(user_turn(''))} tokens, "
        f"and the limit max_tokens is {max_tokens}; raise the limit"
    )


def prompt_stats(prompts: Iterable[Prompt]) -> dict[str, int]:
    """Totals over prompts: their number, their tokens, and what the limit cost (items dropped, questions cut)."""
    prompts = list(prompts)
    tokens = [prompt.n_tokens for prompt in prompts]
    return {
        "prompts": len(prompts),
        "tokens_total": sum(tokens),
        "tokens_max": max(tokens, default=0),
        "items_kept": sum(len(prompt.item_ids) for prompt in prompts),
        "items_dropped": sum(prompt.items_dropped for prompt in prompts),
        "prompts_with_items_dropped": sum(prompt.items_dropped > 0 for prompt in prompts),
        "prompts_without_items": sum(not prompt.item_ids for prompt in prompts),
        "questions_cut": sum(prompt.question_cut for prompt in prompts),
    }


def _item_line(task: str, item: ProfileItem, style: str) -> str:
    """One item by LaMP's template. The other styles put it on one line, so that it cannot imitate their headers."""
    line = TASKS[task].item_line(item.fields)
    return clean(line if style == "official" else _one_line(line))


def profile_items(task: str, profile: str) -> list[str]:
    """The items of a prompt's profile: its lines. One line is cut by the task's template, because the decoded text of
    a word-level tokenizer has no line ends; a line that the template does not explain stays whole."""
    lines = [line.strip() for line in profile.splitlines() if line.strip() and line.strip() != NO_PROFILE]
    if len(lines) != 1 or task not in TASKS:
        return lines
    spec, rest, pattern = TASKS[task], lines[0], _item_pattern(task)
    matches = list(re.finditer(pattern, rest))
    if re.sub(pattern, "", rest).strip():
        return lines
    return [_one_line(spec.item_line(match.groupdict())) for match in matches]


def item_fields(task: str, line: str) -> dict[str, str] | None:
    """The fields of an item that a prompt shows as `line`; None if the task's template does not explain the line."""
    match = re.fullmatch(_item_pattern(task), line.strip())
    return match.groupdict() if match else None


@cache
def _item_pattern(task: str) -> str:
    """The task's item template as a regular expression with a group for each field."""
    pattern = ""
    for literal, blank, _, _ in string.Formatter().parse(TASKS[task].item_template.strip()):
        pattern += r"\s*".join(map(re.escape, re.findall(r"\w+|[^\w\s]", literal)))
        pattern += rf"\s*(?P<{blank}>.*?)\s*" if blank else ""
    return pattern


def _messages(task: str, lines: list[str], text: str, style: str, schema: TagSchema) -> Messages:
    if style == "official":
        content = clean(TASKS[task].assemble(lines, text))
    else:
        instruction = ORDINARY.get(style) or reasoning_instruction(schema)
        profile = [PROFILE_HEADER, *lines] if lines else [NO_PROFILE]
        # Cleaned once more as a whole: two harmless texts could join to markup.
        content = f"{instruction}\n" + clean("\n".join([*profile, QUESTION_HEADER, text]))
    return user_turn(content)


def user_turn(content: str) -> Messages:
    """One user turn: every chat template has one, not every one has a system turn."""
    return ({"role": "user", "content": content},)


def _most_items(count: int, fits: Callable[[int], bool]) -> int:
    """The largest number of items in 0..count that fits, or -1 if not even 0 does. O(log count) calls."""
    if fits(count):
        return count
    # 1..count-1 first and 0 last: a prompt without items has another line and need not be the shortest.
    kept = bisect.bisect_left(range(1, count), True, key=lambda n: not fits(n))
    if kept > 0 or (count > 0 and fits(0)):
        return kept
    return -1


def _longest_prefix(text: str, fits: Callable[[str], bool]) -> str:
    """The longest prefix that fits, cut back to a word's end if there is one; "" if no character fits."""
    # bisect finds the first length in 1..len that does not fit; the length before it is the answer.
    length = bisect.bisect_left(range(1, len(text) + 1), True, key=lambda n: not fits(text[:n]))
    longest = text[:length]
    inside_word = 0 < length < len(text) and not text[length].isspace() and not longest[-1].isspace()
    whole = longest.rstrip()
    if inside_word:
        words = longest.rsplit(None, 1)
        whole = words[0] if len(words) == 2 and words[0].strip() else longest
    for prefix in (whole, longest):  # a tokenizer may need more tokens for the shorter text
        if prefix.strip() and fits(prefix):
            return prefix
    return ""
