"""What every page owes its reader: captions, scopes, no constant chart, definitions, and a headline that is right."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import made_chains
import pytest
from made_report import jsonl, make_recipe, make_run

from tagpr_rl.config import dump_recipe, load_recipe
from tagpr_rl.files import write_json
from tagpr_rl.prmu.training.preferences import KINDS
from tagpr_rl.report import build_report, collect
from tagpr_rl.report.cards.card_pages import page as card_page
from tagpr_rl.report.cards.data_card import data_card
from tagpr_rl.report.cards.prmu_page import prmu_view
from tagpr_rl.report.cards.sections import prompt_table
from tagpr_rl.report.cards.sweep_page import sweep_page
from tagpr_rl.report.page.comparison import compare, read_side, write_page
from tagpr_rl.report.page.headline import roles, verdict
from tagpr_rl.report.page.names import PAIR_KINDS, words
from tagpr_rl.report.page.samples import REASONS, choose_samples
from tagpr_rl.run.layout import RunDir
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import StageManifest

SWEEP = {
    "overrides": {"stages.guided.steps": 3}, "per_seed": {"1": {"score": 0.5, "by_task": {"LaMP_2": 0.5}}},
    "score": [0.5, 0.4, 0.6], "against_first": [0.1, 0.0, 0.2],
}  # fmt: skip
PRMU = {"unseen/accuracy": 0.9, "unseen/pairs": 40.0, "unseen/users": 7.0, "unseen/LaMP_2": 0.75, "score_std": 2.5}
FAITHFUL = {"n": 4, "changed": [0.2, 0.1, 0.3], "score": [0.5, 0.4, 0.6], "score_change": [0.0, 0.0, 0.0]}


class Shape(HTMLParser):
    """Tables without a caption, heads without a scope, and the points of each line of each picture."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables, self.captions = 0, 0
        self.bare_heads: list[str] = []
        self.pictures: list[list[str]] = []
        self.skips: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if tag == "th" and own.get("scope") not in ("col", "row"):
            self.bare_heads.append(str(self.getpos()))
        if tag == "svg" and own.get("role") == "img":
            self.pictures.append([])
        if tag == "polyline":
            self.pictures[-1].append(own["points"] or "")
        if tag == "a" and own.get("class") == "skip":
            self.skips.append(own["href"])


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with something in every section."""
    run = make_run(tmp_path / "runs")
    write_json(run.resolved, dump_recipe(make_recipe()))
    write_json(run.stage(6, "prmu").root / "prmu.json", PRMU)
    write_json(run.stage(2, "prompts").root / "prompts.json", {"train": {"prompts": 62, "tokens_max": 40}})
    write_json(run.stage(4, "chains").root / "chains.json", made_chains.FACTS | {"rejected": {"WRONG_ANSWER": 2}})
    write_json(run.root / "faithful" / "guided.json", {"stage": "guided", "alterations": {"drop_all": FAITHFUL}})
    write_json(
        run.root.parent / "sweep.json", {"format": 1, "name": "s", "seeds": [1], "arms": {"a": SWEEP, "b": SWEEP}}
    )
    alert = {"step": 7, "kind": "malformed", "value": 0.41, "limit": 0.25, "text": "look"}
    jsonl(run.stage(7, "guided").root / "alerts.jsonl", [alert])
    return run


def pages(run: RunDir, folder: Path) -> dict[str, str]:
    """Each kind of page as text."""
    sides = [read_side(run, make_recipe(), label, None) for label in ("one", "two")]
    write_page(compare(sides), folder / "compare.html")
    manifest = StageManifest("chains", "chains", "2026-01-01T00:00:00Z", 1.0, {}, "abc", {})
    card = data_card(
        made_chains.recipe(folder), "chains", made_chains.FACTS, made_chains.CHAINS, [], default_schema(),
        manifest=manifest, environment={},
    )  # fmt: skip
    files = (build_report(run, make_recipe()), folder / "compare.html", sweep_page(run.root.parent))
    return {path.name: path.read_text() for path in files} | {"card.html": card_page(card, default_schema())}


def test_every_table_has_a_caption_and_every_head_a_scope(run: RunDir, tmp_path: Path) -> None:
    for name, text in pages(run, tmp_path).items():
        shape = Shape(text)
        assert shape.tables == shape.captions > 0, name
        assert shape.bare_heads == [], name
        assert shape.skips == ["#main"] and 'id="main"' in text, name
    assert Shape(build_report(run, make_recipe()).read_text()).tables >= 12


def test_no_chart_is_constant_and_what_is_constant_is_said(run: RunDir, tmp_path: Path) -> None:
    for name, text in pages(run, tmp_path).items():
        for lines in filter(None, Shape(text).pictures):
            heights = [{point.split(",")[1] for point in line.split()} for line in lines]
            assert any(len(values) > 1 for values in heights), (name, lines)
    text = build_report(run, make_recipe()).read_text()
    assert "Constant, so without a chart: task reward by task: LaMP-2 0.5" in re.sub(r"<[^>]*>", "", text).replace(
        "\n", ""
    )


def test_the_headline_is_the_files_numbers(run: RunDir) -> None:
    # Scores of both users and tasks are drawn anew; mean, gain and interval are computed here, without the project.
    rng = random.Random(3)
    path = run.stage(9, "eval").root / "eval.json"
    content = json.loads(path.read_text())
    content["comparisons"] = []
    for entry in content["models"].values():
        for question in entry["questions"]:
            question["score"] = rng.random()
        entry["score"] = sum(q["score"] for q in entry["questions"]) / 4
    path.write_text(json.dumps(content))
    score = {name: {q["key"]: q["score"] for q in entry["questions"]} for name, entry in content["models"].items()}

    def gain(a: str, b: str) -> tuple[float, float, float]:
        """Two users: a resample has both, the first twice, or the second twice; 95 % reaches both ends."""
        own = [
            [score[b][f"{task}/{user}"] - score[a][f"{task}/{user}"] for task in ("LaMP_2", "LaMP_3")]
            for user in (0, 1)
        ]
        means = [sum(values) / 2 for values in own]
        return sum(means) / 2, min(means), max(means)

    report = collect(run, make_recipe())
    assert {key: report["headline"][key] for key in ("final", "start", "base")} == {
        "final": "explore", "start": "sft", "base": "base",
    }  # fmt: skip
    for found, (a, b) in zip(report["headline"]["gains"], (("sft", "explore"), ("base", "explore")), strict=True):
        assert (found["a"], found["b"], found["questions"]) == (a, b, 4)
        assert (found["difference"], found["low"], found["high"]) == pytest.approx(gain(a, b))
    text = build_report(run, make_recipe()).read_text()
    cards = re.findall(r'<div class="card"><b>(\S+) .*?\[(\S+), (\S+)\]', text)
    mean = content["models"]["explore"]["score"]
    assert cards[0][0] == f"{mean:.3f}"
    for card, pair in zip(cards[1:3], (("sft", "explore"), ("base", "explore")), strict=True):
        value, low, high = gain(*pair)
        assert card == (f"{value:+.3f}", f"{low:.3f}", f"{high:.3f}")
    assert {(c["a"], c["b"]) for c in report["comparisons"]} == {("sft", "explore"), ("base", "explore")}


def test_roles_follow_the_lineage() -> None:
    recipe = make_recipe()
    assert roles(recipe, ["base", "sft", "guided"]) == {"final": "guided", "start": "sft", "base": "base"}
    assert roles(recipe, ["sft", "explore"]) == {"final": "explore", "start": "sft", "base": None}
    assert roles(recipe, ["base", "explore"]) == {"final": "explore", "start": None, "base": "base"}
    assert roles(recipe, ["base", "sft"]) == {"final": "sft", "start": None, "base": "base"}
    assert roles(recipe, ["base", "base, another prompt"])["final"] == "base"
    arms = load_recipe(Path(__file__).resolve().parents[3] / "recipes" / "demo_answers.yaml")
    assert roles(arms, ["base", "sft", "answers"])["final"] == "sft"  # the arm beside it is not the method's model
    assert roles(recipe, []) == {"final": None, "start": None, "base": None}
    assert [verdict(*pair) for pair in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (None, None))] == [
        "the interval is above 0", "the interval is below 0", "no difference shown", "",
    ]  # fmt: skip


def test_names_are_defined_before_the_results(run: RunDir) -> None:
    text = build_report(run, make_recipe()).read_text()
    names = text[text.index('id="names"') : text.index('id="results"')]
    defined = re.findall(r"<dt>(.*?)</dt>", names)
    assert defined[:4] == ["base", "sft", "guided", "explore"]
    assert {"shuffled", "majority", "blind", "oracle", "PRMU", "task score"} < set(defined)
    assert "reward: task × format + 0.1 × repetition; the final model" in names
    assert "cut off" not in defined  # no evaluated model says how often it was cut
    visible = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
    assert "`" not in visible


def test_a_time_split_has_no_held_out_users(run: RunDir) -> None:
    assert "4 questions of 2 held-out users" in build_report(run, make_recipe()).read_text()
    path = run.stage(0, "data").root / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "setting": "time"}))
    text = build_report(run, make_recipe()).read_text()
    assert "4 questions of 2 users, later questions" in text and "<dt>users, later questions</dt>" in text
    assert "held-out users" not in text.split("viewer-data")[0]


def test_the_share_that_was_cut_off_is_a_column(run: RunDir) -> None:
    path = run.stage(9, "eval").root / "eval.json"
    content = json.loads(path.read_text())
    content["models"]["base"]["truncated"] = 0.625
    path.write_text(json.dumps(content))
    text = build_report(run, make_recipe()).read_text()
    assert "cut off</th>" in text and "0.625" in text and "<dt>cut off</dt>" in text
    assert "what all training added to base (0.420, 62.5 % of its responses cut off)" in text


def test_the_reward_model_is_told_in_words() -> None:
    view = prmu_view(PRMU)
    assert view is not None and view.accuracy == 0.9 and view.counts == (("0", "0"), ("40", "7"))
    assert view.rows == [("all pairs", None, 0.9), ("all pairs of LaMP-2", None, 0.75)]
    assert view.rest == [("standard deviation of the raw scores", "2.5")]
    assert set(KINDS) <= set(PAIR_KINDS)
    assert prmu_view(None) is None
    assert words("unseen/user_macro") == "unseen: user macro" and words("train/LaMP_2N") == "train: LaMP-2N"
    assert prompt_table({"train": {"items_kept": 1234}, "held_out": {}}) == (
        ["train", "held out"], [("items kept", ["1,234", "-"])],
    )  # fmt: skip


def test_sample_counts_add_up_and_the_widest_come_first() -> None:
    rng = random.Random(5)
    answers = {
        model: [{"task": "LaMP_3", "record_id": str(i), "score": rng.choice((0.0, 0.25, 0.5, 1.0))} for i in range(40)]
        for model in ("base", "sft", "explore")
    }
    samples, counts = choose_samples(answers, ("sft", "explore"))
    assert sum(counts[reason] for reason in REASONS) == counts["questions"] == 40 and counts["pair"] == [
        "sft",
        "explore",
    ]
    change = [s["responses"]["explore"]["score"] - s["responses"]["sft"]["score"] for s in samples]
    assert counts["improved"] >= 4 and change[:4] == sorted(change[:4], reverse=True) and change[3] > 0
    widest = max(b["score"] - a["score"] for a, b in zip(answers["sft"], answers["explore"], strict=True))
    assert change[0] == widest
