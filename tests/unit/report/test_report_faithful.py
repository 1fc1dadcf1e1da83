"""The report's faithfulness section: the rows of the file, and the sentence that goes when it was measured."""

from __future__ import annotations

from pathlib import Path

from made_report import make_recipe, make_run

from tagpr_rl.files import write_json
from tagpr_rl.report import build_report, collect
from tagpr_rl.report.cards.sections import faithful_tests


def test_what_was_measured_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert any("is faithful" in line for line in collect(run, make_recipe())["not_measured"])
    assert 'id="faithful"' not in build_report(run, make_recipe()).read_text()
    row = {"n": 40, "changed": [0.25, 0.125, 0.375], "score": [0.5, 0.4, 0.6], "score_change": [-0.0625, -0.1, 0.0]}
    facts = {"stage": "guided", "questions": 50, "well_formed": 40, "alterations": {"drop_all": row}}
    write_json(run.root / "faithful" / "guided.json", {**facts, "tags": {"conclude": {**row, "n": 7}}})
    (test,) = faithful_tests(run)
    assert [(r.name, r.n, r.changed[0]) for r in test.rows] == [
        ("drop_all", 40, 0.25),
        ("drop_step: conclude", 7, 0.25),
    ]
    text = build_report(run, make_recipe()).read_text()
    for shown in ("guided: 40 of 50 questions", "no step is left", "0.250", "[0.125, 0.375]", "-0.062"):
        assert shown in text, shown
    assert not any("is faithful" in line for line in collect(run, make_recipe())["not_measured"])
