"""The tag schema as data: which tags a thought may use, how often, and in what order."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from tagpr_rl.documents import read_document
from tagpr_rl.types import TagprError, did_you_mean

NAME_PATTERN = "[A-Za-z_][A-Za-z0-9_-]*"
"""What a tag name looks like; also what makes `<name>` markup (see grammar.py). ASCII, case-sensitive."""
THINK = "think"
"""The element around the steps; reserved in every spelling of its case."""

MAX_STEPS = 64
"""Steps of a thought after this many are surplus: a bound on their pairwise comparison."""

_NAME = re.compile(NAME_PATTERN)
_FILE_KEYS = ("version", "tags")
_TAG_KEYS = ("name", "purpose", "required", "min_count", "max_count", "before")


@dataclass(frozen=True, slots=True)
class TagSpec:
    """One tag and its constraints on a chain."""

    name: str
    purpose: str
    """One sentence: what a step with this tag does. Shown to the labeller and to the policy."""
    required: bool = False
    """Must occur. Always the same as `min_count >= 1`."""
    min_count: int = 0
    """Least occurrences."""
    max_count: int = 1
    """Most occurrences that count; at least 1."""
    before: tuple[str, ...] = ()
    """Tags before whose first occurrence this tag's first occurrence must come, if both occur."""

    @property
    def occurrences(self) -> str:
        """How often the tag may occur, in words: `1 to 3 times`, `at most once`."""
        most = "once" if self.max_count == 1 else f"{self.max_count} times"
        if self.min_count == 0:
            return f"at most {most}"
        return most if self.min_count == self.max_count else f"{self.min_count} to {most}"


@dataclass(frozen=True)
class TagSchema:
    """A versioned set of tags. Building an inconsistent one raises ValueError with every mistake."""

    version: str
    tags: tuple[TagSpec, ...]

    def __post_init__(self) -> None:
        if problems := _semantic_problems(self.tags):
            raise ValueError("inconsistent tag schema: " + "; ".join(problems))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Tag names in the schema's order."""
        return tuple(tag.name for tag in self.tags)

    @cached_property
    def by_name(self) -> Mapping[str, TagSpec]:
        """Name -> tag; its membership test is the parser's."""
        return {tag.name: tag for tag in self.tags}

    @cached_property
    def required(self) -> tuple[tuple[str, int], ...]:
        """(name, least occurrences) of the tags that must occur."""
        return tuple((tag.name, tag.min_count) for tag in self.tags if tag.min_count > 0)

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the schema as canonical JSON (sorted keys, no spaces, UTF-8)."""
        text = json.dumps(to_mapping(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def schema_from(path: Path | str | None) -> TagSchema:
    """The schema of a file, or the built-in one for None (`schema_file` of a recipe)."""
    return load_schema(Path(path)) if path is not None else default_schema()


def default_schema() -> TagSchema:
    """The nine default tags.

    The paper names `examine_examples` and `identify_patterns`; it does not give the other seven names, the counts,
    orders and purposes. Three moves are required, without which a thought is not about the user: look at the user's
    items, say what the user prefers, apply it to the question. So a chain of three steps can be fully valid, and
    nothing in the score asks for a longer one.
    """
    return TagSchema(version="tagpr-default-1", tags=_DEFAULT_TAGS)


_DEFAULT_TAGS = (
    TagSpec(
        "examine_examples",
        "Look at concrete items of the user's history and quote what matters in them.",
        required=True,
        min_count=1,
        max_count=3,
        before=("identify_patterns", "infer_preference", "apply_preference", "conclude"),
    ),
    TagSpec(
        "identify_patterns",
        "State a regularity that several items of the history share.",
        max_count=2,
        before=("apply_preference", "conclude"),
    ),
    TagSpec(
        "understand_task",
        "Say what the question asks for and which answers are allowed.",
        before=("apply_preference", "check_answer", "conclude"),
    ),
    TagSpec(
        "infer_preference",
        "Say what the user prefers, as the history shows it.",
        required=True,
        min_count=1,
        max_count=2,
        before=("apply_preference", "check_answer", "conclude"),
    ),
    TagSpec("compare_options", "Compare possible answers for this user.", max_count=3, before=("conclude",)),
    TagSpec(
        "weigh_conflict",
        "Settle evidence of the history that points in different directions.",
        max_count=2,
        before=("conclude",),
    ),
    TagSpec(
        "apply_preference",
        "Apply the user's preference to this question.",
        required=True,
        min_count=1,
        max_count=2,
        before=("check_answer", "conclude"),
    ),
    TagSpec("check_answer", "Check the intended answer against the history and the question."),
    TagSpec("conclude", "Say which answer follows."),
)


def to_mapping(schema: TagSchema) -> dict[str, Any]:
    """The schema as plain JSON values, in the layout that `load_schema` reads."""
    return {
        "version": schema.version,
        "tags": [asdict(tag) | {"before": list(tag.before)} for tag in schema.tags],
    }


def load_schema(path: Path) -> TagSchema:
    """Read a schema from a `.yaml`, `.yml` or `.json` file.

    Layout: `version` (text) and `tags`, a list of mappings with `name`, `purpose` and optionally
    `required` (false), `min_count` (1 if required, else 0), `max_count` (the larger of 1 and
    `min_count`), `before` ([]).

    Raises:
        TagprError: the file cannot be read or parsed, or holds mistakes; all mistakes are listed at once.
    """
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise TagprError(f"{path}: a tag schema is a .yaml, .yml or .json file")
    return schema_from_mapping(read_document(path, "tag schema"), where=str(path))


def schema_from_mapping(value: Any, *, where: str) -> TagSchema:
    """Build a schema from plain values (`load_schema`'s layout); `where` names their source in errors.

    Raises:
        TagprError: all mistakes in one message.
    """
    problems: list[str] = []
    specs: list[TagSpec] = []
    version = ""
    if not isinstance(value, Mapping):
        problems.append(f"expected a mapping with keys {', '.join(_FILE_KEYS)}, got {_kind(value)}")
    else:
        problems += _unknown_keys(value, _FILE_KEYS, "")
        version = value.get("version", "")
        if not isinstance(version, str) or not version.strip():
            problems.append(f'version: expected text such as "1" (quoted), got {version!r}')
        tags = value.get("tags")
        if not isinstance(tags, list) or not tags:
            problems.append(f"tags: expected a list with at least one tag, got {_kind(tags)}")
        else:
            for index, entry in enumerate(tags):
                spec, faults = _read_tag(entry, f"tags[{index}]")
                problems += faults
                specs.append(spec)
    problems += _semantic_problems(specs) if specs else []
    if problems:
        heading = f"{where}: tag schema has {len(problems)} mistake(s):"
        raise TagprError("\n  - ".join([heading, *problems]))
    return TagSchema(version=version, tags=tuple(specs))


def _read_tag(entry: Any, where: str) -> tuple[TagSpec, list[str]]:
    """One tag entry -> its faults and a spec, with defaults for bad values so that later checks still run."""
    if not isinstance(entry, Mapping):
        return TagSpec(name="", purpose=""), [f"{where}: expected a mapping, got {_kind(entry)}"]
    faults = _unknown_keys(entry, _TAG_KEYS, f"{where}.")

    def take(key: str, kind: type, default: Any, expected: str) -> Any:
        if key not in entry:
            return default
        if type(entry[key]) is kind:  # not isinstance: True is an int
            return entry[key]
        faults.append(f"{where}.{key}: expected {expected}, got {entry[key]!r}")
        return default

    for key in ("name", "purpose"):
        if key not in entry:
            faults.append(f"{where}: missing key {key!r}")
    name = take("name", str, "", "text")
    purpose = take("purpose", str, "", "text")
    if "purpose" in entry and isinstance(entry["purpose"], str) and not purpose.strip():
        faults.append(f"{where}.purpose: empty; say in one sentence what the step does")
    required = take("required", bool, False, "true or false")
    min_count = take("min_count", int, int(required), "a whole number")
    max_count = take("max_count", int, max(1, min_count), "a whole number")
    before = take("before", list, [], "a list of tag names")
    if not all(isinstance(item, str) for item in before):
        faults.append(f"{where}.before: expected a list of tag names, got {before!r}")
        before = [item for item in before if isinstance(item, str)]
    return TagSpec(name, purpose, required, min_count, max_count, tuple(before)), faults


def _semantic_problems(tags: Sequence[TagSpec]) -> list[str]:
    """Everything wrong with well-typed tags: names, counts, duplicates, references, cycles."""
    if not tags:
        return ["no tags"]
    problems: list[str] = []
    names = [tag.name for tag in tags]
    for name in sorted({name for name in names if names.count(name) > 1 and name}):
        problems.append(f"tag {name!r} is defined {names.count(name)} times; names must differ")
    for index, tag in enumerate(tags):
        label = f"tag {tag.name!r}" if tag.name else f"tags[{index}]"
        if tag.name.lower() == THINK:
            problems.append(f"{label}: the name is reserved for the element around the steps")
        elif not _NAME.fullmatch(tag.name):
            problems.append(f"{label}: bad name; use letters, digits, _ and -, a letter or _ first")
        if tag.min_count < 0:
            problems.append(f"{label}: min_count {tag.min_count} is below 0")
        if tag.max_count < max(1, tag.min_count):
            problems.append(f"{label}: max_count {tag.max_count} is below {max(1, tag.min_count)}")
        if tag.required != (tag.min_count >= 1):
            problems.append(
                f"{label}: required={tag.required} with min_count={tag.min_count}; "
                "a required tag has min_count >= 1, an optional one 0"
            )
        for other in sorted({other for other in tag.before if tag.before.count(other) > 1}):
            problems.append(f"{label}: before names {other!r} {tag.before.count(other)} times; once is enough")
        for other in tag.before:
            if other not in names:
                hint = did_you_mean(other, names, otherwise=f"known: {', '.join(names)}")
                problems.append(f"{label}: before names unknown tag {other!r}; {hint}")
        if len(set(tag.before)) < len(tag.before):
            problems.append(f"{label}: before names a tag twice: {', '.join(tag.before)}")
    least = sum(tag.min_count for tag in tags)
    if least > MAX_STEPS:
        problems.append(f"the tags' min_count are {least} steps together; a thought has at most {MAX_STEPS}")
    try:
        TopologicalSorter({tag.name: tag.before for tag in tags}).prepare()
    except CycleError as error:
        problems.append("before has a cycle: " + " -> ".join(reversed(error.args[1])))
    return problems


def _unknown_keys(value: Mapping[Any, Any], known: Sequence[str], prefix: str) -> list[str]:
    hints = {key: did_you_mean(str(key), known, otherwise=f"known: {', '.join(known)}") for key in value}
    return [f"{prefix}{key}: unknown key; {hint}" for key, hint in hints.items() if key not in known]


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{type(value).__name__} {str(value)[:60]!r}"
