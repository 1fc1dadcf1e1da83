"""What a model's chat template and tokenizer do, found by rendering and encoding probe texts. Imports no torch.

Nothing is believed: not the model's name, not the template's wording, not the names of special tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any

from tagpr_rl.model.tokenizer import encoded, first_line, losses, schema_tags, tag_mistakes
from tagpr_rl.tags.schema import THINK, TagSchema
from tagpr_rl.types import TagprError

OPEN, CLOSED, NONE = "open", "closed", "none"
"""Where a response begins: inside a thought that the prompt has opened, after one, or with neither."""
KEPT, MERGED = "kept", "merged into the user's"
"""A system message reaches the model, or `merged_system` must put it before the user's text."""
SWITCHES = ("enable_thinking", "thinking")
"""Names under which templates know a switch for thinking."""
PINNED_DATE = date(2025, 1, 1)
"""The day that a template which writes today's date gets instead, so that a prompt never changes."""
FILE_REMEDY = "give a template of your own with model.chat_template: FILE"

_USER = [{"role": "user", "content": " zq1 Who <think>wrote</think> <b>it</b>, {{ braces }}?\n\nTwo  spaces zq2\n"}]
_SYSTEM, _ANSWER, _THOUGHT, _DATE = "zq3 be brief", "zq4 answer", "zq5 thought", "zq6 date"
_LONG = "zq1 " + "word " * 20_000 + "zq2"
_THINK_TAG = re.compile(rf"<(/?){THINK}>")

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """What `probe` found."""

    thought: str
    """Where a response begins by default: OPEN, CLOSED or NONE."""
    switch: str | None
    """The template's switch for thinking, one of SWITCHES; None if no switch changes its text."""
    thinking_on: str
    """`thought` with the switch on; as `thought` without a switch."""
    thinking_off: str
    """`thought` with the switch off; as `thought` without a switch."""
    past_thoughts: bool
    """Whether the thoughts of earlier assistant turns stay in the prompt."""
    system: str
    """KEPT or MERGED."""
    added: str
    """Text that the template adds before the user's, without special tokens: the role's name, a default system prompt.
    """
    dated: bool
    """Whether the template writes today's date; `template` then writes PINNED_DATE."""
    text: str
    """What becomes of the user's text: "exact", "trimmed" at its ends, or "spaces" (line breaks become spaces)."""
    bos: int
    """Tokens at the prompt's beginning that are the tokenizer's BOS."""
    end: str
    """The token that ends a response; it is learned, and generation stops at it."""
    end_id: int
    """Its id."""
    pad_is_end: bool
    """Padding is the end token too. Harmless here: losses are masked by position, never by id."""
    special_tags: tuple[str, ...]
    """Tags that are special tokens: they vanish wherever special tokens are skipped in decoding."""
    loses: tuple[str, ...]
    """What the tokenizer loses of a text: "capital letters", "accents", "white space", "rare characters"."""
    num_tokens: int
    """Largest token id + 1."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: what is unusual and not wrong."""
    template: str | None = field(default=None, repr=False)
    """The template to publish in place of the model's: without today's date, or with the thought not closed. None if
    the model's is right."""

    def record(self) -> dict[str, Any]:
        """Plain JSON values, without the template's text."""
        facts = asdict(replace(self, template=None))
        del facts["template"]
        return facts


def probe(tokenizer: Any, schema: TagSchema) -> TemplateFacts:
    """Look at a Hugging Face tokenizer and its chat template. TagprError that lists every mistake."""
    name = str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
    return require(name, *look(tokenizer, schema_tags(schema)))


def require(name: str, facts: TemplateFacts | None, mistakes: Sequence[str]) -> TemplateFacts:
    """The facts of the model `name`. TagprError that lists the mistakes, if there are any."""
    if mistakes or facts is None:
        raise TagprError("\n  ".join([f"{name}: its chat template or tokenizer cannot be used:", *mistakes]))
    return facts


def look(tokenizer: Any, tags: Sequence[str]) -> tuple[TemplateFacts | None, list[str]]:
    """(facts, mistakes). The facts are None if the template renders nothing."""
    mistakes = tag_mistakes(tokenizer, tags)
    try:
        source = str(tokenizer.get_chat_template())
    except ValueError:  # there is none, or several without a default
        return None, [f"the tokenizer has no chat template; {FILE_REMEDY}", *mistakes]
    own = tokenizer.chat_template
    try:
        before = rendered(tokenizer, _USER)
        template, dated = _pinned(tokenizer, source)
        tokenizer.chat_template = template or own
        found = _look(tokenizer, tags, mistakes)
    except TagprError as error:
        return None, [f"{error}; {FILE_REMEDY}", *mistakes]
    finally:
        tokenizer.chat_template = own
    notes = [f"the template writes today's date; prompts have {PINNED_DATE} in its place"] if dated else []
    if template is not None and _state(_after(before)) == CLOSED:
        notes.append(f"the template closes the thought by default; {found.switch} is on")
    return replace(found, dated=dated, template=template, notes=(*found.notes, *notes)), mistakes


def rendered(tokenizer: Any, messages: Messages, *, generation: bool = True, **settings: Any) -> str:
    """The chat template's text, by default up to where the assistant begins. TagprError with what a template raises."""
    chat = [dict(message) for message in messages]
    try:
        return str(tokenizer.apply_chat_template(chat, add_generation_prompt=generation, tokenize=False, **settings))
    except Exception as error:  # a template is a program and may raise anything
        roles = ", ".join(message["role"] for message in messages)
        raise TagprError(f"the chat template raises on messages of {roles}: {first_line(error)}") from error


def turn_end(tokenizer: Any) -> int | None:
    """Id of the token that ends an assistant's turn; None if nothing does, or without a template."""
    try:
        end, _ = _turn_end(tokenizer, rendered(tokenizer, _USER))
    except TagprError:
        return None
    return end if end >= 0 else None


def merged_system(messages: Messages) -> list[Mapping[str, str]]:
    """The messages with each system message put before the text of the next one, for templates without that role."""
    merged: list[Mapping[str, str]] = []
    before = ""
    for message in messages:
        if message["role"] == "system":
            before += message["content"] + "\n\n"
        else:
            merged.append({**message, "content": before + message["content"]} if before else message)
            before = ""
    return merged


def _pinned(tokenizer: Any, source: str) -> tuple[str | None, bool]:
    """(the template to publish in place of `source`, or None; whether `source` writes today's date)."""
    formats: list[str] = []

    def now(form: str) -> str:
        formats.append(form)
        return _DATE

    prompt = rendered(tokenizer, _USER, strftime_now=now)
    dated, before = _DATE in prompt, ""
    if dated:
        days = "".join(
            f"{{% {'el' * bool(i)}if f == {json.dumps(form)} %}}{PINNED_DATE.strftime(form)}"
            for i, form in enumerate(dict.fromkeys(formats))
        )
        before += f"{{% macro strftime_now(f) %}}{days}{{% else %}}{PINNED_DATE}{{% endif %}}{{% endmacro %}}"
    switch, on, _ = _switch(tokenizer)
    if switch is not None and _state(_after(prompt)) == CLOSED != on:
        before += f"{{% if {switch} is not defined %}}{{% set {switch} = true %}}{{% endif %}}"
    return (before + source, dated) if before else (None, False)


def _look(tokenizer: Any, tags: Sequence[str], mistakes: list[str]) -> TemplateFacts:
    """The facts; `mistakes` gets what is wrong."""
    prompt = rendered(tokenizer, _USER)
    fate = _fate(prompt, _USER[0]["content"])
    long = [{"role": "user", "content": _LONG}]
    if fate is None or _fate(rendered(tokenizer, long), _LONG) is None:
        mistakes.append(f"the template drops or changes the user's text; {FILE_REMEDY}")
    if any(rendered(tokenizer, _USER) != prompt for _ in range(3)):
        mistakes.append(f"the template renders one message differently each time; {FILE_REMEDY}")
    thought, (switch, on, off) = _state(_after(prompt)), _switch(tokenizer)
    if thought == CLOSED:
        mistakes.append(f"the template closes the thought before the response; {FILE_REMEDY}")
    ids, bos = encoded(tokenizer, prompt), tokenizer.bos_token_id
    num_bos = next((i for i, token in enumerate(ids) if token != bos), len(ids)) if bos is not None else 0
    if num_bos > 1:
        mistakes.append(f"the prompt begins with {num_bos} tokens {tokenizer.bos_token}; {FILE_REMEDY} that writes one")
    end_id, end_mistakes = _turn_end(tokenizer, prompt)
    mistakes += end_mistakes
    facts = TemplateFacts(
        thought=thought,
        switch=switch,
        thinking_on=thought if switch is None else on,
        thinking_off=thought if switch is None else off,
        past_thoughts=_past_thoughts(tokenizer),
        system=_system(tokenizer),
        added=_added(tokenizer, prompt),
        dated=False,
        text=fate or "changed",
        bos=num_bos,
        end="" if end_id < 0 else str(tokenizer.convert_ids_to_tokens(end_id)),
        end_id=end_id,
        pad_is_end=tokenizer.pad_token_id in (None, end_id),
        special_tags=tuple(
            t for t in tags if t not in tokenizer.decode(encoded(tokenizer, t), skip_special_tokens=True)
        ),
        loses=losses(tokenizer),
        num_tokens=max(tokenizer.get_vocab().values(), default=-1) + 1,
    )
    return replace(facts, notes=_notes(tokenizer, facts))


def _special(tokenizer: Any, tags: Sequence[str]) -> tuple[str, ...]:
    plain = {tag: str(tokenizer.decode(encoded(tokenizer, tag), skip_special_tokens=True)) for tag in tags}
    return tuple(tag for tag, text in plain.items() if tag not in text)


def _notes(tokenizer: Any, facts: TemplateFacts) -> tuple[str, ...]:
    notes = []
    if facts.thought == OPEN:
        notes.append("the template opens <think> itself: responses are learned without it and read with it")
    if facts.special_tags:
        notes.append(f"{len(facts.special_tags)} tags are special tokens: responses are decoded with them kept")
    if facts.system == MERGED:
        notes.append("the template has no system role: a system message is put before the user's text")
    if len(facts.added.split()) > 3:
        notes.append(f"the template adds to every prompt: {facts.added!r}")
    if facts.end_id != tokenizer.eos_token_id:
        notes.append(f"a turn ends with {facts.end}, and eos_token is {tokenizer.eos_token}: both end a response")
    if not facts.bos and tokenizer.bos_token_id is not None and _plain_bos(tokenizer):
        notes.append(f"the template does not write {tokenizer.bos_token}, which the tokenizer puts before plain text")
    lost = [loss for loss in facts.loses if loss in ("capital letters", "accents")]
    if lost:
        notes.append(f"the tokenizer loses {' and '.join(lost)}: no answer can have them")
    return tuple(notes)


def _plain_bos(tokenizer: Any) -> bool:
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


def _fate(prompt: str, text: str) -> str | None:
    """What becomes of `text` in the prompt, as in TemplateFacts.text; None if it is not there."""
    if text in prompt:
        return "exact"
    if text.strip() in prompt:
        return "trimmed"
    return "spaces" if " ".join(text.split()) in " ".join(prompt.split()) else None


def _after(prompt: str) -> str:
    """What the template writes after the last user message."""
    return prompt[prompt.rfind("zq2") + 3 :]


def _state(after: str) -> str:
    tags = _THINK_TAG.findall(after)
    return NONE if not tags else CLOSED if tags[-1] else OPEN


def _switch(tokenizer: Any) -> tuple[str | None, str, str]:
    """(name, thought with it on, with it off) of the template's switch for thinking; (None, "", "") without one."""
    for name in SWITCHES:
        on, off = (rendered(tokenizer, _USER, **{name: value}) for value in (True, False))
        if on != off:
            return name, _state(_after(on)), _state(_after(off))
    return None, "", ""


def _system(tokenizer: Any) -> str:
    try:
        prompt = rendered(tokenizer, [{"role": "system", "content": _SYSTEM}, *_USER])
    except TagprError:  # Gemma's template raises "System role not supported"
        return MERGED
    return KEPT if 0 <= prompt.find(_SYSTEM) < prompt.find("zq1") else MERGED


def _turn_end(tokenizer: Any, prompt: str) -> tuple[int, list[str]]:
    """(id of the token that ends an assistant turn, mistakes of the generation prompt and the end)."""
    eos = tokenizer.eos_token_id
    try:
        turn = rendered(tokenizer, [*_USER, {"role": "assistant", "content": _ANSWER}], generation=False)
    except TagprError:
        turn = ""
    turn = _after(turn) if "zq2" in turn else ""  # a template for one question alone shows the last message only
    head, found, tail = turn.partition(_ANSWER)
    own, wanted = (re.sub(r"\s+", "", _THINK_TAG.sub("", text)) for text in (_after(prompt), head))
    mistakes = []
    if found and own != wanted:
        own, wanted = _after(prompt), head
        same = next(
            (i for i, (a, b) in enumerate(zip(own, wanted, strict=False)) if a != b), min(len(own), len(wanted))
        )
        own, wanted = own[same:], wanted[same:]
        mistakes.append(
            f"with add_generation_prompt the template writes {own!r} before a response, and {wanted!r} before an "
            f"assistant's turn, so a response would begin in the wrong place; {FILE_REMEDY}"
        )
    first = encoded(tokenizer, tail.lstrip())[:1]
    if first and (first[0] in tokenizer.added_tokens_decoder or first[0] in tokenizer.all_special_ids):
        return first[0], mistakes
    if eos is None:
        return -1, [*mistakes, "the tokenizer has no eos_token, and the template ends no turn: nothing ends a response"]
    return int(eos), mistakes


def _past_thoughts(tokenizer: Any) -> bool:
    past = {"role": "assistant", "content": f"<{THINK}>\n{_THOUGHT}\n</{THINK}>\n\n{_ANSWER}"}
    try:
        return _THOUGHT in rendered(tokenizer, [*_USER, past, *_USER])
    except TagprError:
        return False


def _added(tokenizer: Any, prompt: str) -> str:
    before = prompt[: prompt.find("zq1")]
    for token in sorted(map(str, tokenizer.added_tokens_decoder.values()), key=len, reverse=True):
        before = before.replace(token, " ")
    return " ".join(before.split())
