"""A small made-up run on disk: its numbers land in report.json, in the page and in the terminal table."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_report import EVIL, jsonl, make_recipe, make_run
from rich.console import Console

from tagpr_rl.chains.keep import Rejection
from tagpr_rl.files import write_json
from tagpr_rl.report import build_report, collect, summary_table
from tagpr_rl.report.cards.sections import REASONS
from tagpr_rl.report.page.samples import REASONS as SAMPLE_REASONS
from tagpr_rl.run.layout import RunDir


class Page(HTMLParser):
    """Cells of each table by its id, text of the page, and every tag and attribute met."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._rows: list[list[str]] | None = None
        self.feed(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("id") or "", [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._rows = None

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] = (self._rows[-1][-1] + " " + data.strip()).strip()


def page_of(run: RunDir) -> Page:
    return Page(build_report(run, make_recipe()).read_text())


run = pytest.fixture(lambda tmp_path: make_run(tmp_path), name="run")


def test_scores_land_in_the_table_between_their_ceilings(run: RunDir) -> None:
    rows = {row[0]: [*row[3:5], *row[1:3], *row[5:]] for row in page_of(run).tables["scores"]}
    assert list(rows) == [
        "model",
        "blind ceiling",
        "majority",
        "base",
        "sft",
        "explore",
        "explore, shuffled profile",
        "oracle ceiling",
    ]
    assert rows["explore"] == ["0.811", "0.833", "0.822", "[0.772, 0.872]", "0.750"]
    assert rows["blind ceiling"][:3] == ["0.333", "0.444", "0.389"]
    assert rows["explore, shuffled profile"][2] == "0.320"
    assert rows["base"][4] == "-"  # answers directly: nobody asked it for a thought
    assert rows["sft"][4] == "0.750"


def test_other_numbers_land_in_the_page(run: RunDir) -> None:
    page = page_of(run)
    assert page.tables["comparisons"][1][:3] == ["base", "explore", "+0.402"]
    assert page.tables["official_LaMP_3"][:2] == [["model", "MAE ↓"], ["base", "0.777 [0.500, 0.900]"]]
    assert ["TRUNCATED", "1", "1", "1", "1", "ends inside the thought"] in page.tables["parse"]
    stages = {row[0]: row for row in page.tables["stages"]}
    assert stages["base"][2:4] == ["done", "1 min 20 s"]
    assert stages["explore"][2] == "unfinished" and stages["sft"][2] == "not run"
    assert page.tables["chain_reasons"][1][:2] == ["wrong_answer", "2"]
    assert "total = task × format + 0.2 × tag + 0.2 × prmu + 0.1 × repetition" in page.text
    assert "total = task × format + 0.1 × repetition" in page.text
    assert page.tables["controls"][1] == ["shuffled", "0.320", "-0.502", "[-0.502, -0.502]", "4"]  # 0.320 - 0.822


def test_the_chains_section_shows_reasons_kappa_coverage_and_evidence(run: RunDir) -> None:
    facts = {
        "asked": 40,
        "kept": 29,
        "kept_wrong": 3,
        "rejected": {"WRONG_ANSWER": 8, "NOT_ASKED": 3},
        "tags": {"examine_examples": 30, "conclude": 0},
        "coverage": {"examine_examples": 0.875, "conclude": 0.0},
        "steps_per_chain": {"4": 29},
        "kappa": 0.7314,
        "agreement": {"by_tag": {"examine_examples": 0.6182, "conclude": None}},
        "evidence": {
            "tested": 20,
            "shown": 17,
            "own_steps": 0.5,
            "other_steps": 0.125,
            "answers_compared": 10,
            "answers_changed": 0.4,
        },
        "teacher": {"name": EVIL, "requests": 40, "cached": 7, "prompt_tokens": 900, "completion_tokens": 80},
        "labeller": {
            "name": "rules",
            "deterministic": True,
            "requests": 80,
            "cached": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
        },
        "pairs": {"cross_profile": 5},
    }
    write_json(run.stage(4, "chains").root / "chains.json", facts)
    page = page_of(run)
    assert "29 of 40 asked kept." in page.text
    assert "a Cohen's kappa of 0.731 (1 is full agreement): the labeller follows rules" in page.text
    assert "5 against a response to another user's profile" in page.text
    assert page.tables["chain_reasons"][2][:2] == ["NOT_ASKED", "3"]
    assert [[row[0], row[1], row[2], row[4]] for row in page.tables["chain_tags"][1:]] == [
        ["examine_examples", "30", "87.5 %", "0.618"],
        ["conclude", "0", "0.0 %", "-"],
    ]
    assert page.tables["chain_sources"][1][2:] == ["40", "7", "900", "80"]
    assert "In 17 of them" in page.text and "changed with the profile in 0.400 of 10 cases" in page.text
    assert not any("kappa" in line for line in collect(run, make_recipe())["not_measured"])


def test_every_reason_has_a_meaning() -> None:
    assert list(REASONS) == [reason.value for reason in Rejection]


def test_a_control_is_compared_on_common_questions(run: RunDir) -> None:
    path = run.stage(9, "eval").root / "eval.json"
    content = json.loads(path.read_text())
    own = content["controls"]["shuffled"]["questions"]
    content["controls"]["shuffled"]["questions"] = own[:1]  # .31 in LaMP_2, where the model has .811
    path.write_text(json.dumps(content))
    assert page_of(run).tables["controls"][1][2] == "-0.501"
    content["controls"]["shuffled"]["questions"] = [own[0] | {"key": "LaMP_2/else"}]
    path.write_text(json.dumps(content))
    assert page_of(run).tables["controls"][1][2] == "-"


def test_json_holds_what_the_stages_wrote(run: RunDir) -> None:
    build_report(run, make_recipe())
    report = json.loads(run.report_json.read_text())
    assert report == collect(run, make_recipe())
    assert report["questions"] == {
        "total": 96,
        "by_task": {t: {"train": 31, "held_out": 17} for t in report["tasks"]},
    }
    assert report["models"]["sft"]["scores"] == {"LaMP_2": 0.61, "LaMP_3": 0.63}
    assert report["models"]["sft"]["intervals"]["LaMP_2"] == pytest.approx([0.61, 0.61])  # two users, equal scores
    assert report["control_model"] == "explore" and report["direct_models"] == ["base"]
    assert [s["seconds"] for s in report["stages"]] == [1.5, 2.5, None, 80.0, 0.5, None, None, 60.0, None, 9.0]
    missing = " ".join(report["not_measured"])
    for words in (
        "'sft' (supervised fine-tuning) is not run",
        "'explore' (reinforcement learning) is unfinished",
        "Controls not run: empty.",
        "'explore' uses no PRMU",
        "kappa",
    ):
        assert words in missing


def test_samples_are_chosen_by_outcome(run: RunDir) -> None:
    report = collect(run, make_recipe())
    reasons = {s["record_id"]: s["reason"] for s in report["samples"]}
    # From sft, where RL started, to explore: 1 -> 1, 1 -> 0, 0 -> 0; the last does not parse.
    assert reasons == {"1": "worse", "2": "still wrong"}
    counts = report["sample_counts"]
    assert counts == {
        "questions": 3,
        "improved": 0,
        "worse": 1,
        "still wrong": 1,
        "still right": 1,
        "malformed": 1,
        "pair": ["sft", "explore"],
    }
    assert counts["questions"] == sum(counts[reason] for reason in SAMPLE_REASONS)
    assert list(report["samples"][0]["responses"]) == ["base", "sft", "explore"]


def test_the_viewer_says_how_much_it_shows(run: RunDir) -> None:
    page = page_of(run)
    assert "6 of 6 rollouts of the GRPO stages and 9 of 9 responses to held-out questions" in page.text
    assert "whole groups, evenly" not in page.text  # all are there


def test_alerts_are_shown_where_there_are_some(run: RunDir) -> None:
    assert "alerts" not in [attrs.get("id") for _, attrs in page_of(run).tags]
    alert = {"step": 7, "kind": "malformed", "value": 0.41, "limit": 0.25, "text": f"look {EVIL}"}
    jsonl(run.stage(7, "guided").root / "alerts.jsonl", [alert])
    page = page_of(run)
    assert ["guided", "7", "⚠ malformed", "0.41", "0.25", f"look {EVIL}"] in page.tables["alerts_table"]
    assert json.loads(run.report_json.read_text())["alerts"] == [{"stage": "guided", **alert}]


def test_a_stage_without_prmu_has_no_prmu_curve(run: RunDir) -> None:
    text = build_report(run, make_recipe()).read_text()
    at = text.index('aria-label="reward: prmu against step"')
    points = text[at : text.index("</svg>", at)].split('points="')[1].split('"')[0].split()
    assert len(points) == 2  # guided's two steps, not explore's false zeros
    at = text.index('aria-label="reward: total against step"')
    assert len(text[at : text.index("</svg>", at)].split('points="')[1].split('"')[0].split()) == 4


def test_model_text_cannot_become_markup(run: RunDir) -> None:
    text = build_report(run, make_recipe()).read_text()
    page = Page(text)
    assert EVIL not in text
    assert page.text.count("alert(1)") >= 3  # prompt, sample and rollout: as text or as data
    assert [attrs.get("type") for tag, attrs in page.tags if tag == "script"] == ["application/json", None]
    assert not [tag for tag, _ in page.tags if tag in ("iframe", "img", "object", "link", "base")]
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]


def test_page_is_self_contained(run: RunDir) -> None:
    text = build_report(run, make_recipe()).read_text()
    targets = [v for _, attrs in Page(text).tags for k, v in attrs.items() if k in ("src", "href", "xlink:href")]
    assert targets and all(v is not None and v.startswith("#") for v in targets)
    assert "http://" not in text and "https://" not in text and "@import" not in text


def test_same_run_same_bytes(run: RunDir) -> None:
    first = [p.read_bytes() for p in (build_report(run, make_recipe()), run.report_json)]
    again = [p.read_bytes() for p in (build_report(run, make_recipe()), run.report_json)]
    assert first == again
    assert sorted(p.name for p in run.root.iterdir() if p.is_file()) == ["report.html", "report.json"]


def test_a_run_without_evaluation_says_so(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, evaluated=False))
    assert "No model has been evaluated: not run." in page.text
    assert "Not evaluated: base, sft, explore." in page.text
    assert [row[0] for row in page.tables["scores"]] == ["model", "blind ceiling", "oracle ceiling"]


def test_a_run_that_never_began(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "none")
    page = page_of(run)
    assert {row[2] for row in page.tables["stages"][1:]} == {"not run"}
    assert {row[3] for row in page.tables["stages"][1:]} == {"-"}  # no time was measured
    report = collect(run, make_recipe())
    assert report["models"] == {} and report["bounds"] is None and report["questions"]["total"] is None


def test_terminal_table_has_the_same_numbers(run: RunDir) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(summary_table(collect(run, make_recipe())))
    text = console.export_text()
    assert "0.811" in text and "[0.772, 0.872]" in text and "explore, shuffled profile" in text


def test_half_a_surrogate_pair_does_not_stop_the_report(run: RunDir) -> None:
    path = run.stage(9, "eval").root / "responses" / "explore.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["response"] = "broken \ud83d half"
    jsonl(path, rows)
    assert "broken ? half" in build_report(run, make_recipe()).read_text()
