"""What a teacher is: something that writes an untagged chain and an answer for a prompt.

The text a teacher returns is plain: one reasoning step per line, then a last line `Answer: ...`. A thinking
model's own `<think> ... </think>` around the steps is accepted too (see segment.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tagpr_rl.types import LampRecord, ProfileItem, Prompt, TagprError

TEACHER_INSTRUCTION = (
    "Think in 3 to 8 short steps, one per line, before you answer: look at concrete items of the user's history and "
    "quote them, say what the user prefers, apply it to the question. Then write a last line 'Answer: ' with the "
    "answer only. Use no tags and no list numbers."
)


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """One chain to write."""

    record: LampRecord
    prompt: Prompt
    """What the teacher may see of the record's profile: the items named in `prompt.item_ids`."""
    sample: int = 0
    """Number of the sample for this prompt, from 0; another sample may give another chain."""

    @property
    def items(self) -> tuple[ProfileItem, ...]:
        """The profile items in the prompt, in the prompt's order."""
        by_id = {item.id: item for item in self.record.profile}
        missing = [item_id for item_id in self.prompt.item_ids if item_id not in by_id]
        if missing:
            raise TagprError(
                f"record {self.record.id!r}: the prompt shows item {missing[0]!r}, which is not in its profile; "
                "build the prompt from the same record"
            )
        return tuple(by_id[item_id] for item_id in self.prompt.item_ids)


class Teacher(Protocol):
    """Writes one text per request, in order."""

    def generate(self, requests: Sequence[TeacherRequest]) -> list[str]:
        """Untagged chains with an `Answer:` line; a text that breaks the form is rejected later, with a reason."""


Generate = Callable[[Sequence[Sequence[Mapping[str, str]]]], list[str]]
"""Chats -> completions, in order (an endpoint, an offline engine)."""


class ModelTeacher:
    """A language model as teacher, behind a `generate` callable (our prompt; the paper's is not public)."""

    def __init__(self, generate: Generate) -> None:
        self._generate = generate

    def generate(self, requests: Sequence[TeacherRequest]) -> list[str]:
        """The record's prompt (best built in the `direct` style) with our teacher instruction as system turn."""
        chats = [[{"role": "system", "content": TEACHER_INSTRUCTION}, *request.prompt.messages] for request in requests]
        texts = self._generate(chats)
        if len(texts) != len(requests):
            raise TagprError(f"the teacher answered {len(texts)} of {len(requests)} requests; one text each is needed")
        return texts
