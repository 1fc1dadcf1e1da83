"""Lays out a data card: as Markdown for README.md, as one HTML page, and as SVG plots."""

from __future__ import annotations

import re

import yaml

from tagpr_rl.report.cards.data_card import DataCard
from tagpr_rl.report.page.embed import environment
from tagpr_rl.report.page.names import task_label
from tagpr_rl.report.page.trace import tag_hues, trace_view
from tagpr_rl.tags.schema import TagSchema


def markdown(card: DataCard) -> str:
    """README.md: YAML front matter for `datasets`, then the card. Texts of models and data are escaped."""
    lines = [
        "---", yaml.safe_dump(dict(card.front_matter), sort_keys=False).rstrip("\n"), "---", "",
        f"# {_inline(card.title)}", "", card.summary, "",
        "| " + " | ".join(label for _, label in card.cards) + " |",
        "|" + "---|" * len(card.cards),
        "| " + " | ".join(value for value, _ in card.cards) + " |", "",
        "```python",
        "from datasets import load_dataset",
        'chains = load_dataset("<this folder>", split="train")',
        "```", "",
        "`messages` is the whole chat with the tagged response as its last turn, `steps` the same thought as tag and "
        "text. `tag_schema.json` has the tags, `card.html` this card with coloured examples.", "",
    ]  # fmt: skip
    for section in card.sections:
        lines += [f"## {section.title}", ""]
        for line in section.lines:
            lines += [line, ""]
        if section.head:
            lines += ["| " + " | ".join(section.head) + " |", "|" + "---|" * len(section.head)]
            lines += ["| " + " | ".join(_inline(cell) for cell in row) + " |" for row in section.rows]
            lines.append("")
        for name, chart in section.charts.items():
            lines += [f"![{chart.title}](plots/{name})", ""]
    lines += ["## Example chains", "", "One of each task, chosen by a hash of the record's id.", ""]
    for example in card.examples:
        wrong = "" if example.correct else " (wrong answer, kept on purpose)"
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", example.response)), default=0))
        lines += [f"{_inline(task_label(example.task))}{wrong}:", "", f"{fence}text", example.response, fence, ""]
    return "\n".join(lines)


def _inline(text: str) -> str:
    """`text` on one line, escaped so that Markdown shows it unchanged, also in a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(str(text).split()))


def page(card: DataCard, schema: TagSchema) -> str:
    """card.html: a self-contained page with the examples coloured by tag."""
    examples = [
        {
            "task": e.task, "record_id": e.record_id, "user_id": e.user_id, "correct": e.correct, "prompt": e.prompt,
            "view": trace_view(e.response, schema),
        }
        for e in card.examples
    ]  # fmt: skip
    return (
        environment()
        .get_template("data_card.html.j2")
        .render(
            v=card, examples=examples, hues=tag_hues(schema), tag_index={name: i for i, name in enumerate(schema.names)}
        )
    )


def plots(card: DataCard) -> dict[str, str]:
    """File name -> SVG of each chart, for README.md."""
    template = environment().get_template("bars.svg.j2")
    charts = {name: chart for section in card.sections for name, chart in section.charts.items()}
    return {name: template.render(c=chart, standalone=True) for name, chart in charts.items()}
