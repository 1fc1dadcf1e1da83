"""Write the generated parts of the documentation from the code: `python docs/generate.py` (or `make docs`).

Whole pages (`PAGES`) and marked parts of hand-written pages (`PARTS`). tests/test_docs.py compares both with what is
committed, so a change of the command line, of a recipe key, of a metric or of a file's first line fails until this
command has run again.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from generate_cli import NOTE, cell, cli_page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


# --------------------------------------------------------------------------------------------------- recipe keys


def recipe_blocks() -> list[tuple[str, type[BaseModel]]]:
    """(dotted prefix, config class) of every block of a recipe."""
    from tagpr_rl.config import Recipe

    return list(_blocks("", Recipe, set()))


def recipe_page() -> str:
    """Every key of a recipe by block: type, range, default and the sentence below the field in the code."""
    lines = [
        "# Recipe keys",
        NOTE,
        "A recipe is YAML with a closed set of keys. On the command line a key is written with dots:",
        "`stages.guided.lr=1e-4`. A block that a recipe leaves out has its defaults. How recipes are combined,",
        "changed and checked stands in [The pipeline](../concepts/pipeline.md).",
        "",
    ]
    for prefix, model in recipe_blocks():
        title = f"`{prefix}`" if prefix else "The recipe itself"
        lines += [f"## {title}", "", _first_paragraph(model), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [_key_row(name, field) for name, field in model.model_fields.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _blocks(prefix: str, model: type[BaseModel], done: set[type[BaseModel]]) -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted prefix, model) of a block and of those below it; a block that several stages share comes once."""
    if model in done:
        return
    done.add(model)
    yield prefix, model
    for name, field in model.model_fields.items():
        for below in _models_of(field.annotation):
            kind = below.model_fields.get("kind")
            stage = f".<{get_args(kind.annotation)[0]} stage>" if kind is not None and name == "stages" else ""
            dotted = f"{prefix}.{name}".lstrip(".") + stage
            yield from _blocks(dotted, below, done)


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    """The config classes that a field's type names, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) if not isinstance(inner, str) for model in _models_of(inner)]


def _key_row(name: str, field: FieldInfo) -> str:
    models = _models_of(field.annotation)
    meaning = field.description or (_first_paragraph(models[0]) if len(models) == 1 else "")
    return f"| `{name}` | {cell(_kind(field))} | {cell(_default(field))} | {cell(meaning)} |"


def _kind(field: FieldInfo) -> str:
    """A field's type and range in words: `integer >= 1`, `a or b`, `block`."""
    return _with_range(_type_words(field.annotation), field.metadata)


def _with_range(words: str, metadata: Any) -> str:
    signs = {Ge: ("ge", ">="), Gt: ("gt", ">"), Le: ("le", "<="), Lt: ("lt", "<")}
    flat = [item for entry in metadata for item in getattr(entry, "metadata", [entry])]
    limits = [f"{signs[type(item)][1]} {getattr(item, signs[type(item)][0]):g}" for item in flat if type(item) in signs]
    least = [f"at least {item.min_length}" for item in flat if isinstance(item, MinLen)]
    return " ".join([words, ", ".join([*limits, *least])]).strip()


def _type_words(annotation: Any) -> str:
    simple = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", type(None): "null"}
    if annotation in simple:
        return simple[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _with_range(_type_words(inner[0]), inner[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        models = [part for part in inner if _models_of(part)]
        words = [_type_words(part) for part in inner if part not in models]
        return " or ".join(dict.fromkeys([*(["block"] if models else []), *words]))
    if origin in (tuple, list, set, frozenset):
        parts = [part for part in inner if part is not Ellipsis]
        many = "list of " if Ellipsis in inner or origin is not tuple else f"{len(parts)} x "
        return many + _type_words(parts[0])
    if origin is not None and issubclass(origin, Mapping):
        return "blocks by name,"
    return "block" if _models_of(annotation) else "any"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value is PydanticUndefined:
        return "its defaults"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


# -------------------------------------------------------------------------------------------------------- metrics


FAMILIES = {
    "reward/<component>_format/mean": "a component times `format`, of a term with a gate",
    "reward/<component>/{mean,std,min,max,zero_variance}": "a reward component over the step; the share of groups in "
    "which it does not differ",
    "task/<task>/<component>": "its mean over the responses of one task",
    "tag/<tag>/{use,valid,words}": "share of responses that use the tag, share of its steps without a fault, "
    "words a step",
    "parse/<STATUS>": "share of responses with this parse status",
    "phase/<name>_s, phase/<name>_share": "seconds of a phase of the step, and its share",
    "driver/{only_s,share,hook_s,hook_share}": "time in which only the driver works; time of the logging hook",
    "prmu/...": "PRMU's waiting time, masked responses, correlation with the task reward (`_within`: in groups)",
    "algo/...": "size of the advantages, groups and responses that were left out",
    "actor/..., critic/..., timing_s/..., perf/..., rollout_corr/..., training/...": "verl's own metrics",
}


def metrics_page() -> str:
    """What the report names: every table of report/page/names.py."""
    from tagpr_rl.report.page import names

    lines = [
        "# Metrics",
        NOTE,
        "The names that the report, `metrics.jsonl`, W&B and TensorBoard share. ↑ higher is better, ↓ lower is better.",
        "How to read them: [Tracking](../guides/tracking.md).",
        "",
        "A GRPO stage also logs these families, a name for each component, task, tag, status or phase:",
        "",
        "| family | meaning |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in FAMILIES.items()),
        "",
    ]
    tables: dict[str, Any] = {"REWARD_COMPONENTS": names.reward_names(()), **vars(names)}
    for name, value in tables.items():
        if not name.isupper() or name.startswith("_"):
            continue
        if isinstance(value, tuple) and isinstance(value[0], names.MetricName):
            rows = [f"| `{item.key}` {item.arrow} | {cell(item.label)} | {cell(item.meaning)} |" for item in value]
            lines += [f"## {_title(name)}", "", "| key | label | meaning |", "|---|---|---|", *rows, ""]
        elif isinstance(value, Mapping) and all(isinstance(meaning, str) for meaning in value.values()):
            rows = [f"| `{key}` | {cell(meaning)} |" for key, meaning in value.items()]
            lines += [f"## {_title(name)}", "", "| key | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


def _title(constant: str) -> str:
    words = constant.replace("_", " ").lower()
    return {"sft": "SFT", "prmu": "PRMU"}.get(words, words.capitalize())


# ------------------------------------------------------------------------------------------ files and run folders

FOLDERS = ("tagpr_rl", "docs", "recipes", "bench", "cluster", "tests")


def files_page() -> str:
    """Every module, recipe, bench, test and template with its first line."""
    lines = [
        "# Files",
        NOTE,
        "Each file with its first line. How the packages depend on each other: [Architecture](../architecture.md).",
        "",
    ]
    for top in FOLDERS:
        folders = sorted({path.parent for path in _listed(ROOT / top)})
        for folder in folders:
            relative = folder.relative_to(ROOT)
            package = folder / "__init__.py"
            purpose = f" {_first_line(package)}" if package.is_file() else ""
            lines += [f"## `{relative}/`", "", *([purpose.strip(), ""] if purpose.strip() else [])]
            rows = [
                f"| [`{path.name}`](../../{relative}/{path.name}) | {cell(_first_line(path))} |"
                for path in _listed(folder)
                if path.parent == folder and path.name != "__init__.py"
            ]
            lines += ["| file | what it is for |", "|---|---|", *rows, ""] if rows else []
    return "\n".join(lines).rstrip() + "\n"


def _listed(folder: Path) -> list[Path]:
    suffixes = {".py", ".yaml", ".j2", ".js"}
    hidden = {"__pycache__", "reference", "images"}
    found = [path for path in folder.rglob("*") if path.suffix in suffixes and not hidden & set(path.parts)]
    return sorted(path for path in found if path.is_file())


def _first_line(path: Path) -> str:
    """The first sentence that a file says of itself: docstring, or leading comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    for line in text.splitlines()[:3]:
        found = re.match(r"^(?:#|//|\{#-?|/\*)\s*(?!!)(.*?)\s*(?:-?#\}|\*/)?$", line.strip())
        if found and found[1]:
            return found[1].replace("{{ ", "<").replace(" }}", ">")
    return ""


# --------------------------------------------------------------------------------------------- parts of other pages


def components_part() -> str:
    """The built-in reward components."""
    from tagpr_rl.reward.components import COMPONENTS

    rows = [f"| `{c.name}` | [{c.low:g}, {c.high:g}] | {cell(c.meaning)} |" for c in COMPONENTS.values()]
    return "\n".join(["| component | range | what it is |", "|---|---|---|", *rows])


def algorithms_part() -> str:
    """The algorithms that `algorithm:` of a GRPO stage names, with the keys that each sets."""
    from tagpr_rl.config.grpo import algorithm_rows

    lines = ["| `algorithm:` | idea | what it sets |", "|---|---|---|"]
    for row in algorithm_rows():
        name, arxiv, idea = row.pop("algorithm"), row.pop("arXiv"), row.pop("idea")
        keys = ", ".join(f"`{key}: {value}`" for key, value in row.items())
        lines.append(f"| `{name}` ([arXiv {arxiv}](https://arxiv.org/abs/{arxiv})) | {cell(idea)} | {keys} |")
    return "\n".join(lines)


def run_part() -> str:
    """The paths of a run, from run/layout.py."""
    from tagpr_rl.run.layout import RunDir

    return _paths(RunDir(Path("runs/<name>")), "runs/<name>/")


def stage_part() -> str:
    """The paths of a stage, from run/layout.py."""
    from tagpr_rl.run.layout import StageDir

    return _paths(StageDir(Path("010_<stage>")), "010_<stage>/")


def _paths(holder: Any, folder: str) -> str:
    rows = []
    for name, member in vars(type(holder)).items():
        if isinstance(member, property) and isinstance(path := getattr(holder, name), Path):
            meaning = " ".join((inspect.getdoc(member) or "").partition("\n\n")[0].split())
            rows.append(f"| `{str(path).removeprefix(folder)}` | {cell(meaning)} |")
    return "\n".join([f"| in `{folder}` | what it holds |", "|---|---|", *rows])


def tags_part() -> str:
    """The default tag schema."""
    from tagpr_rl.tags.schema import default_schema

    rows = []
    for tag in default_schema().tags:
        before = ", ".join(f"`{name}`" for name in tag.before)
        rows.append(f"| `{tag.name}` | {cell(tag.purpose)} | {tag.occurrences} | {before} |")
    return "\n".join(["| tag | a step with this tag | occurrences | comes before |", "|---|---|---|---|", *rows])


def layers_picture() -> str:
    """The packages as boxes, each above all that it imports, from the table in tests/test_layers.py."""
    wide, high, gap, left = 92, 34, 10, 20
    rows = sorted(_levels().items(), reverse=True)
    width = left + max(len(names) for _, names in rows) * (wide + gap) + gap
    height = len(rows) * (high + 22) + 24
    boxes = []
    for row, (_, names) in enumerate(rows):
        start = (width - len(names) * (wide + gap) + gap) / 2
        for column, name in enumerate(names):
            x, y = start + column * (wide + gap), 18 + row * (high + 22)
            boxes.append(f'  <rect x="{x:g}" y="{y}" width="{wide}" height="{high}" rx="6" fill="{_colour(name)}"/>')
            boxes.append(f'  <text x="{x + wide / 2:g}" y="{y + 22}">{name}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img"',
            '  font-family="\'DejaVu Sans Mono\', Menlo, monospace" font-size="14" text-anchor="middle">',
            "  <title>Packages of tagpr_rl; each imports only what stands below it</title>",
            f'  <rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>',
            '  <g stroke="#1f2937" fill="#111827" stroke-width="0">',
            *boxes,
            "  </g>",
            "</svg>",
            "",
        ]
    )


def _levels() -> dict[int, list[str]]:
    """Level -> packages: 0 imports nothing, each other one stands above all that it imports."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    table = next(
        node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MAY_IMPORT"
    )
    # The table is written with stars, which literal_eval does not read; the file is this project's own.
    below: dict[str, set[str]] = eval(ast.unparse(table), {"set": set})
    level: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in level:
            level[name] = 1 + max((of(other) for other in below[name]), default=-1)
        return level[name]

    levels: dict[int, list[str]] = {}
    for name in below:
        levels.setdefault(of(name), []).append(name)
    return levels


def _colour(name: str) -> str:
    torch, stack = ("prmu", "model"), ("backend", "stages", "studies")
    return "#fed7aa" if name in stack else "#fde68a" if name in torch else "#dbeafe"


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/recipe.md": recipe_page,
    "reference/metrics.md": metrics_page,
    "reference/files.md": files_page,
    "images/layers.svg": layers_picture,
}
PARTS: dict[tuple[str, str], Callable[[], str]] = {
    ("concepts/tags-and-rewards.md", "tags"): tags_part,
    ("concepts/tags-and-rewards.md", "components"): components_part,
    ("guides/grpo.md", "algorithms"): algorithms_part,
    ("reference/run-folder.md", "run"): run_part,
    ("reference/run-folder.md", "stage"): stage_part,
}


def with_part(text: str, name: str, content: str) -> str:
    """`text` with what stands between `<!-- name -->` and `<!-- /name -->` replaced."""
    opening, closing = f"<!-- {name}: generated -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(opening)
    _, also, after = rest.partition(closing)
    if not (found and also):
        raise ValueError(f"no part '{name}' in the page: {opening} ... {closing}")
    return f"{before}{opening}\n{content}\n{closing}{after}"


def generated() -> dict[Path, str]:
    """Path -> text of every page that is generated as a whole or in part."""
    texts = {DOCS / name: build() for name, build in PAGES.items()}
    for (page, name), build in PARTS.items():
        path = DOCS / page
        texts[path] = with_part(texts.get(path) or path.read_text(encoding="utf-8"), name, build())
    return texts


def _paragraph(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def _first_paragraph(model: type[BaseModel]) -> str:
    return _paragraph(model.__doc__ or "") if "__doc__" in vars(model) else ""


def main() -> None:
    """Write what differs."""
    for path, text in generated().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
