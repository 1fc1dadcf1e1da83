"""The live view in a real Chromium: a step appears, a person's page links evidence, the filters stay."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from made_report import EVIL, GOOD, jsonl, make_recipe, make_run, rollout

from tagpr_rl.run import metrics
from tagpr_rl.serve.live import view
from tagpr_rl.serve.live.server import LiveServer
from tagpr_rl.serve.live.view import LiveRun

pytestmark = pytest.mark.slow
PROMPT = (
    'Do.\nThe user\'s history, most relevant first:\n4 is the score for "game was strong"\n2 is the score for "'
    f'{EVIL} was plain"\nThe question:\nWhat is the score of the following review? review: soup was'
)


def rows(step: int) -> list[dict[str, Any]]:
    """A group of user u7 without variance, and one of user u8, who was asked the same, with a masked response."""
    one = [rollout(step, sample, GOOD, 1.25, 0.0) | {"prompt": PROMPT, "group": "a"} for sample in (0, 1)]
    two = [row | {"record_id": "8", "user_id": "u8", "group": "b", "gold": "5"} for row in one]
    one = [row | {"record_id": "9"} for row in one]
    return [*one, two[0] | {"masked": True, "why": "not scored"}, two[1] | {"reward_total": 0.5, "staleness": 2}]


def test_the_page_follows_the_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("bench_chromium", root / "bench" / "chromium.py")
    assert spec is not None and spec.loader is not None
    chromium = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_chromium", chromium)
    spec.loader.exec_module(chromium)
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium; install one (Debian: chromium) or name it in TAGPR_CHROMIUM")
    monkeypatch.setattr(view, "LOOK_S", 0.0)
    monkeypatch.setattr(view, "CURVES_SHARE", 1.0)
    run = make_run(tmp_path, evaluated=False)
    folder = run.stage(7, "guided")
    with LiveServer(LiveRun(run, make_recipe()), "127.0.0.1", 0) as server, chromium.driver(path) as launch:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            tab = chromium.open_tab(launch(), server.url)
            page = tab.page
            page.wait_for_selector(".v-list li")
            page.fill("input[type=search]", "u")  # a filter of the reader
            jsonl(folder.rollouts / "step_0004.jsonl", rows(4))
            metrics.append(run.stage(8, "explore").metrics, {"step": 3, "reward/total/mean": 1.875})
            page.wait_for_selector(".v-list li:has-text('step 4')", timeout=8000)
            page.wait_for_selector("[data-part=curves] >> text=1.88", timeout=8000)
            assert page.input_value("input[type=search]") == "u"
            marks = page.locator(".v-list li:has-text('step 4') .pill").all_inner_texts()
            assert sorted(marks) == ["masked", "stale", "zero variance"]
            page.click(".v-list li:has-text('step 4'):has-text('zero variance')")
            page.click("text=the person's page")
            page.wait_for_selector("#v-item-0.used")
            assert page.locator("#v-item-0 small").inner_text().strip() == "← step 1, 3"
            assert page.locator(".v-text mark").all_inner_texts() == ["4", "strong", "strong", "4"]
            assert page.locator("#v-item-1.used").count() == 0 and EVIL in page.locator("#v-item-1").inner_text()
            others = page.locator(".v-others tbody tr").all_inner_texts()
            assert [row.split("\t")[:4] for row in others] == [["u8", "4", "5", "1.25"]]
            assert page.url.endswith("#person=LaMP_3%2F9")
            page.click(".v-others button")
            page.wait_for_selector("h3:has-text('user u8')")
            page.click(".v-bin:last-child")  # 1.265 to 1.325: one response in each of the steps 1 to 3
            assert page.locator("#viewer [role=status]").inner_text() == "3 responses in 3 groups match."
            assert page.evaluate("document.documentElement.scrollWidth") == 1280
            assert tab.errors == tab.dialogs == []
        finally:
            server.shutdown()
            thread.join()
