"""The report in a real Chromium: hostile text, filters, keys, differences, phone width. Skipped where there is none."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_report import GOOD, jsonl, make_recipe, make_run

from tagpr_rl.config import dump_recipe, load_recipe
from tagpr_rl.files import write_json
from tagpr_rl.report import build_report
from tagpr_rl.report.cards.sweep_page import sweep_page
from tagpr_rl.report.page.comparison import compare, read_side, write_page
from tagpr_rl.run.layout import RunDir

pytestmark = pytest.mark.slow
HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> {{7*7}} ' \" & \u2028"
VIEWER = "document.getElementById('viewer')"


def load(root: Path, name: str) -> Any:
    """A module of bench/."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", root / "bench" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def chromium(root: Path) -> Any:
    return load(root, "chromium")


@pytest.fixture(scope="module")
def launch(chromium: Any) -> Iterator[Any]:
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium; install one (Debian: chromium) or name it in TAGPR_CHROMIUM")
    with chromium.driver(path) as launch:
        yield launch


@pytest.fixture(scope="module")
def browser(launch: Any) -> Any:
    return launch()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Four rollouts of one group in guided's step 1, one malformed; 6 more in explore; 9 held-out responses."""
    run = make_run(tmp_path_factory.mktemp("report"))
    write_json(run.resolved, dump_recipe(make_recipe()))
    for path in run.stage(7, "guided").rollouts.iterdir():
        path.unlink()
    base = {
        "step": 1, "record_id": f"7{HOSTILE}", "task": "LaMP_3", "user_id": f"u{HOSTILE}", "gold": HOSTILE + "w" * 80,
        "prompt": f"Do {HOSTILE}\nThe user's history, most relevant first:\n{HOSTILE}\nThe question:\nq{HOSTILE}",
        "reward_task": 1.0, "reward_format": 1.0, "reward_tag": 1.0, "reward_prmu": 0.5, "reward_repetition": 0.0,
    }  # fmt: skip
    fine = {**base, "reward_total": 1.3}
    rows = [
        {**base, "sample": 0, "response": f"{HOSTILE} broken", "reward_total": 0.1, "advantage": -1.5},
        {**fine, "sample": 1, "response": GOOD, "advantage": 0.5,
         "step_credit": [{"step": 1, "tag": "infer_preference", "advantage": -0.25}]},
        {**fine, "sample": 2, "response": GOOD.replace("bold things", f"bold {HOSTILE.replace('<', '(')}"),
         "advantage": 0.5},
        {**fine, "sample": 3, "response": GOOD.replace("4 </apply", "5 </apply"), "advantage": 0.5,
         "masked": True, "why": "no baseline"},
    ]  # fmt: skip
    jsonl(run.stage(7, "guided").rollouts / "step_0001.jsonl", rows)
    more = [
        {**fine, "step": step, "record_id": str(step), "sample": sample, "response": GOOD, "advantage": 0.0}
        for step in (2, 3, 4)
        for sample in (0, 1)
    ]
    for step in (2, 3, 4):
        path = run.stage(8, "explore").rollouts / f"step_{step:04d}.jsonl"
        jsonl(path, [row for row in more if row["step"] == step])
    return run


@pytest.fixture
def page(chromium: Any, browser: Any, run: RunDir) -> Iterator[Any]:
    tab = chromium.open_tab(browser, build_report(run, make_recipe()))
    yield tab.page
    assert tab.errors == tab.dialogs == []
    tab.page.close()


def text(page: Any, selector: str) -> list[str]:
    """Texts of the viewer's elements, in order."""
    actual: list[str] = page.evaluate(
        f"[...{VIEWER}.querySelectorAll({json.dumps(selector)})].map(e => e.textContent.trim())"
    )
    return actual


def choose(page: Any, label: str, shown: str) -> str:
    """Set the filter with this label; what the count says then."""
    page.evaluate(
        f"""(() => {{
        const labels = [...{VIEWER}.querySelectorAll('label')];
        const label = labels.find(e => e.firstChild.textContent === {json.dumps(label)});
        const control = label.lastChild;
        const options = [...(control.options || [])];
        control.value = options.length ? options.find(o => o.text === {json.dumps(shown)}).value : {json.dumps(shown)};
        control.dispatchEvent(new Event(options.length ? 'change' : 'input'));
        return new Promise(done => setTimeout(done, 200));
        }})()"""
    )
    return text(page, "[role=status]")[0]


def test_hostile_text_is_shown_and_does_nothing(page: Any) -> None:
    assert page.evaluate("document.scripts.length") == 2
    assert page.evaluate(f"{VIEWER}.querySelectorAll('img, script, iframe').length") == 0
    shown = HOSTILE.replace("\u2028", "").strip()
    for selector in (".v-detail h3", ".v-detail pre", ".v-detail > p b", ".raw"):
        assert any(shown in actual for actual in text(page, selector)), selector
    assert text(page, "[role=status]") == ["19 responses in 7 groups match."]


def test_a_group_is_sorted_by_reward_with_its_terms(page: Any) -> None:
    cards = text(page, ".v-card header > b")
    assert cards == ["sample 1", "sample 2", "sample 3", "sample 0"]
    first = text(page, ".v-card:first-child .v-terms tbody tr")
    assert first == ["task × format1.00 × 1.00× 11.000", "tag1.000× 0.20.200", "prmu0.500× 0.20.100",
                     "repetition0.000× 0.10.000", "total1.300"]  # fmt: skip
    assert text(page, ".v-card:first-child .adv") == ["advantage ▲ +0.50"]
    assert text(page, ".v-card:first-child .credit") == ["▼ −0.25"]
    steps = text(page, ".v-card:first-child .v-step small")
    assert steps == ["● examine_examples", "◆ infer_preference", "▼ apply_preference"]  # a shape for each tag
    assert "The terms add up to 1.3000, not to the logged total." in text(page, ".v-card:last-child .bad")
    assert "took no part in the update: no baseline" in text(page, ".v-card:nth-child(3) .bad")


def test_filters_narrow_the_list(page: Any) -> None:
    assert choose(page, "stage", "explore") == "6 responses in 3 groups match."
    assert choose(page, "from step", "3") == "4 responses in 2 groups match."
    assert choose(page, "to step", "3") == "2 responses in 1 group match."
    page.evaluate(f"{VIEWER}.querySelector('form button').click()")
    assert choose(page, "stage", "held-out") == "9 responses in 3 groups match."
    assert choose(page, "task", "LaMP-3") == "3 responses in 1 group match."
    assert choose(page, "parser status", "NO_THOUGHT") == "2 responses in 1 group match."
    assert text(page, ".v-card.outside header > b") == ["base"]
    page.evaluate(f"{VIEWER}.querySelector('form button').click()")
    assert choose(page, "reward from", "0.5") == "13 responses in 6 groups match."  # 3 + 6 rollouts, 4 held out
    assert choose(page, "reward to", "1") == "4 responses in 2 groups match."
    page.evaluate(f"{VIEWER}.querySelector('form button').click()")
    assert choose(page, "group", "rewards differ") == "10 responses in 3 groups match."
    assert choose(page, "text", "so strong gets 5") == "1 response in 1 group match."
    assert choose(page, "text", "nowhere") == "0 responses in 0 groups match."
    assert text(page, ".v-detail") == ["No response matches the filters."]


def test_arrow_keys_move_through_the_groups(page: Any) -> None:
    page.evaluate(f"{VIEWER}.querySelector('.v-list').focus()")
    selected = (
        f"[...{VIEWER}.querySelectorAll('.v-list li')].findIndex(e => e.getAttribute('aria-selected') === 'true')"
    )
    places = []
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "End", "ArrowDown", "Home"):
        page.keyboard.press(key)
        places.append(page.evaluate(selected))
    assert places == [1, 2, 1, 6, 6, 0]
    assert page.evaluate("document.activeElement.className") == "v-list"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # the focus is visible
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "the group"


def test_the_difference_names_the_words(page: Any) -> None:
    opened = "e => e.textContent.startsWith('difference')"
    page.evaluate(f"[...{VIEWER}.querySelectorAll('summary')].find({opened}).click()")
    page.evaluate("new Promise(done => setTimeout(done, 100))")
    choose(page, "from", "sample 1, total 1.30")
    choose(page, "to", "sample 3, total 1.30")
    assert text(page, ".v-diff del") == ["4"] and text(page, ".v-diff ins") == ["5"]
    assert text(page, ".v-diff")[0].startswith("[examine_examples] the user gave 4 for strong")
    choose(page, "to", "sample 1, total 1.30")
    assert text(page, ".v-diff p") == ["The two responses are the same, word for word."]


def test_pages_fit_a_phone_and_the_dark(chromium: Any, browser: Any, run: RunDir, tmp_path: Path) -> None:
    sides = [read_side(run, make_recipe(), label, None) for label in ("one", "two")]
    write_page(compare(sides), tmp_path / "compare.html")
    arm = {"overrides": {"stages.guided.steps": 3}, "per_seed": {"1": {"score": 0.5, "by_task": {}}}}
    write_json(
        tmp_path / "sweep.json",
        {"format": 1, "name": "s", "seeds": [1], "arms": {"a" * 30: {**arm, "score": [0.5, 0.4, 0.6]}}},
    )
    for path in (build_report(run, make_recipe()), tmp_path / "compare.html", sweep_page(tmp_path)):
        phone = chromium.open_tab(browser, path, width=375, height=800, dark=True)
        assert phone.page.evaluate("document.documentElement.scrollWidth") == 375, path.name
        assert phone.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
        assert phone.errors == []
        phone.page.close()


def test_the_benchmark_opens_what_it_made(launch: Any, root: Path, tmp_path: Path) -> None:
    bench = load(root, "report")
    recipe = load_recipe(root / "recipes" / "demo.yaml")
    page = build_report(bench.make_run(tmp_path, recipe, 500, 40), recipe)
    figures = bench.measure(launch, page, 1)
    # 2 stages of 25 steps with a group of 8; 25 questions answered by 4 models.
    assert figures["viewer"] == "500 responses in 75 groups match."
    assert figures["console_errors"] == [] and figures["width_at_375"] == 375 and figures["open_s"] > 0


SMALL_TEXT = """[...document.querySelectorAll('svg[viewBox] text')].map(text => {
  const svg = text.ownerSVGElement, box = svg.getBoundingClientRect();
  return box.width ? parseFloat(getComputedStyle(text).fontSize) * box.width / svg.viewBox.baseVal.width : 99;
})"""
CONTRAST = """[...document.querySelectorAll('.v-detail del, .v-detail ins')].map(node => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(node);
  const [low, high] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
})"""


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_keeps_the_mean_and_readable_text(chromium: Any, browser: Any, run: RunDir, dark: bool) -> None:
    phone = chromium.open_tab(browser, build_report(run, make_recipe()), width=390, height=800, dark=dark).page
    phone.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")
    means = phone.evaluate(
        "[...document.querySelectorAll('#scores td:nth-child(2)')].map(e => e.getBoundingClientRect().right)"
    )
    assert means and max(means) <= 390
    rows = phone.evaluate("[...document.querySelectorAll('#stages tr')].map(e => e.getBoundingClientRect().height)")
    assert max(rows) < 100
    assert min(phone.evaluate(SMALL_TEXT)) >= 10
    phone.wait_for_timeout(150)  # the difference is drawn when its element has opened
    assert min(phone.evaluate(CONTRAST)) >= 4.5
    phone.close()


def test_nothing_is_cut_off_on_a_desktop(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")
    wide = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"
    )
    assert wide == []
    bare = (
        "[...document.querySelectorAll('table')].filter(e => !e.caption || e.querySelector('th:not([scope])')).length"
    )
    assert page.evaluate(bare) == 0  # those that the script makes, too
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0


def test_the_widest_group_is_open(page: Any) -> None:
    spread = page.evaluate("document.querySelector('.v-list li[aria-selected=true]').innerText")
    assert "total 0.10 to 1.30" in spread
    assert text(page, ".v-profile li") == [HOSTILE.split("\u2028")[0].strip()]
