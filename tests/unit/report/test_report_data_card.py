"""The data card: numbers by hand, two licences, nothing of the data's text read as markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import made_chains as made
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.report.cards.card_pages import _inline, markdown, page, plots
from tagpr_rl.report.cards.data_card import DataCard, data_card
from tagpr_rl.report.charts.plots import bar_chart, histogram
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import StageManifest

SCHEMA = default_schema()
MANIFEST = StageManifest("chains", "chains", "2026-01-01T00:00:00Z", 1.0, {}, "abc123", {})


def card(facts: dict[str, Any] | None = None, **keys: Any) -> DataCard:
    pairs = [{"task": row["task"], "kind": row["kind"]} for row in made.PAIRS]
    return data_card(
        made.recipe(Path("runs"), **keys), "chains", made.FACTS | (facts or {}), made.CHAINS, pairs, SCHEMA,
        manifest=MANIFEST, environment={"tagpr_rl": "0.1.0", "commit": "c0ffee"},
    )  # fmt: skip


def rows(found: DataCard, title: str) -> dict[str, tuple[str, ...]]:
    section = next(s for s in found.sections if s.title == title)
    return {row[0]: row[1:] for row in section.rows}


def lines(found: DataCard, title: str) -> str:
    return " ".join(next(s for s in found.sections if s.title == title).lines)


def test_numbers_by_hand() -> None:
    actual = card()
    assert actual.cards == (
        ("5", "chains"), ("3", "users"), ("3", "preference pairs"), ("0.750", "Cohen's kappa of two labellings"),
    )  # fmt: skip
    assert rows(actual, "What was kept") == {
        "kept": ("5", "71.4 %"), "rejected: the answer is wrong": ("1", "14.3 %"),
        "rejected: no thought, or no answer line": ("1", "14.3 %"),
    }  # fmt: skip
    assert "7 chains were asked for, 5 kept. 1 of the kept ones have a wrong answer" in lines(actual, "What was kept")
    assert rows(actual, "Tags")["understand_task"] == ("5", "25.0 %", "-")
    assert rows(actual, "Tags")["conclude"] == ("0", "0.0 %", "-")
    # LaMP_1: u1 twice, u2 once; LaMP_2: u2 and u3 once each. Share, users, median, most, pairs.
    assert rows(actual, "Tasks and users") == {
        "LaMP-1": ("3", "60.0 %", "2", "1.5", "2", "1"), "LaMP-2": ("2", "40.0 %", "2", "1", "1", "2"),
    }  # fmt: skip
    assert "2 against a response to another user's profile; 1 against a wrong answer" in lines(
        actual, "Tasks and users"
    )
    # "the question is about red cars" 6 + "the user wrote two red cars" 6 + 5 + 4 + answer 1
    assert "median 22, from 22 to 22" in lines(actual, "Lengths")


def test_models_prompts_and_kappas_come_from_the_stages_facts() -> None:
    assert rows(card(), "Sources")["teacher"] == ("scripted",)
    actual = card(
        {
            "teacher": {
                "name": "big-model", "prompts": {"teacher": "ff00"}, "requests": 9, "cached": 0, "prompt_tokens": 1200,
                "statuses": {"OK": 8, "FAILED": 1},
            },
            "labeller": {"name": "small-model", "deterministic": True},
            "agreement": {"by_tag": {"infer_preference": 0.5, "conclude": None}},
            "evidence": {"tested": 4, "own_steps": 0.75, "answers_changed": None},
            "asked": 10, "users": 3,
        }
    )  # fmt: skip
    sources = rows(actual, "Sources")
    assert (sources["teacher"], sources["labeller"]) == (("big-model",), ("small-model",))
    assert sources["teacher, prompt `teacher` (SHA-256)"] == ("ff00",)
    assert sources["teacher, use"] == ("requests 9, prompt tokens 1,200, statuses OK 8, FAILED 1",)
    assert rows(actual, "Use of the profile") == {
        "right chains with a profile that were tested": ("4",),
        "share of steps with words of the own profile": ("0.75",),
    }
    assert rows(actual, "What was kept")["kept"] == ("5", "50.0 %")
    assert "agree by construction" in lines(actual, "Tags") and len(actual.cards) == 3  # so kappa is no headline
    assert SCHEMA.sha256 in sources["tag schema"][0]
    assert rows(actual, "Tags")["infer_preference"][-1] == "0.500" and rows(actual, "Tags")["conclude"][-1] == "-"
    assert "labelled once" in lines(card({"kappa": None}), "Tags")


def test_the_licence_follows_the_source(tmp_path: Path) -> None:
    world = yaml.safe_load(markdown(card()).split("---")[1])
    assert "license" not in world and "None applies to the source data" in lines(card(), "Licence")
    lamp = card(data={"lamp_dir": str(tmp_path), "tasks": ["LaMP_1", "LaMP_2"]})
    assert yaml.safe_load(markdown(lamp).split("---")[1])["license"] == "cc-by-nc-sa-4.0"
    assert "CC BY-NC-SA 4.0" in lines(lamp, "Licence") and "LaMP files (LaMP-1, LaMP-2)" in lamp.summary


def test_front_matter_names_only_what_is_there() -> None:
    front = yaml.safe_load(markdown(card()).split("---")[1])
    assert [c["config_name"] for c in front["configs"]] == ["chains", "pairs"]
    assert front["size_categories"] == ["n<1K"]
    none = data_card(
        made.recipe(Path("runs")), "chains", made.FACTS, made.CHAINS, [], SCHEMA, manifest=MANIFEST, environment={}
    )
    assert [c["config_name"] for c in yaml.safe_load(markdown(none).split("---")[1])["configs"]] == ["chains"]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)


def test_texts_of_the_data_are_never_markup() -> None:
    html = page(card(), SCHEMA)
    reader = Tags()
    reader.feed(html)
    assert "b" in reader.seen  # the card's own figures
    assert not {"script", "link", "img", "iframe"} & reader.seen
    assert "&lt;/script&gt;&lt;b&gt;x&lt;/b&gt;" in html and "<b>x</b>" not in html
    assert 'class="step t3"' in html  # infer_preference is the fourth tag
    assert re.findall(r"(?:src|href)=(\S+)", html) == ['"#main">Skip']


def test_markdown_cells_and_fences_cannot_be_broken_out_of() -> None:
    actual = card({"teacher": "a | b\n# <img src=x>"})
    text = markdown(actual)
    assert "| teacher | a \\| b \\# \\<img src=x\\> |" in text
    broken = replace(actual, examples=(replace(actual.examples[0], response="```\n# not a heading\n````"),))
    tail = markdown(broken).split("## Example chains")[1]
    assert "`````text\n```\n# not a heading\n````\n`````\n" in tail


@given(st.text())
def test_a_cell_is_one_line_without_live_markup(text: str) -> None:
    shown = _inline(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"[`*_{}\[\]<>#|~&]", re.sub(r"\\[\\`*_{}\[\]<>#|~&]", "", shown))


def test_plots_are_svg_files() -> None:
    made_plots = plots(card())
    assert set(made_plots) == {"tags.svg", "steps.svg", "words.svg"}
    for name, svg in made_plots.items():
        root = ET.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg", name
        assert f"![{root.attrib['aria-label']}](plots/{name})" in markdown(card())


def test_bars_by_hand() -> None:
    chart = bar_chart("t", [("aa", 10), ("b", 5), ("c", 0)], width=300)
    assert chart.left == 12 + 5.5 * 2  # two characters
    assert [bar.width for bar in chart.rows] == [300 - 23 - 52, (300 - 23 - 52) / 2, 0]
    assert [bar.y for bar in chart.rows] == [4, 22, 40] and chart.height == 8 + 3 * 18
    assert bar_chart("t", []).rows == () and bar_chart("t", [("a", 0)]).rows[0].width == 0


def test_a_histogram_by_hand() -> None:
    assert histogram([1, 1, 2, 4], most=4) == [("1", 2), ("2", 1), ("3", 0), ("4", 1)]
    assert histogram([10, 11, 12, 14], most=2) == [("10-12", 3), ("13-14", 1)]
    assert histogram([]) == []


@given(st.lists(st.integers(0, 5000), min_size=1), st.integers(1, 20))
def test_a_histogram_counts_everything_once(values: list[int], most: int) -> None:
    actual = histogram(values, most)
    assert sum(n for _, n in actual) == len(values) and len(actual) <= most


@pytest.mark.parametrize("count, name", [(999, "n<1K"), (1000, "1K<n<10K"), (10_000, "10K<n<100K")])
def test_size_categories(count: int, name: str) -> None:
    actual = data_card(
        made.recipe(Path("runs")), "chains", made.FACTS, [made.CHAINS[0]] * count, [], SCHEMA, manifest=MANIFEST,
        environment={},
    )  # fmt: skip
    assert actual.front_matter["size_categories"] == [name]
