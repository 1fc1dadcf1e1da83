"""recipes/real/smollm2_smoke.yaml on made-up LaMP files: all stages of a real model, if `make weights` was run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import yaml

from tagpr_rl.data.tasks import NEWS_CATEGORIES, TASKS

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "real" / "smollm2_smoke.yaml"
WEIGHTS = ROOT / yaml.safe_load((RECIPE.parent / "smollm2_135m.yaml").read_text())["model"]["path"]
PLACES = ("harbour", "school", "garden", "market", "station", "museum", "bridge", "library")


def made_files(folder: Path) -> None:
    """LaMP_2N and LaMP_4 with five people to train on and three to evaluate, four questions each."""
    rng = Random(3)
    for task in ("LaMP_2N", "LaMP_4"):
        for split, people in (("train", 5), ("dev", 3)):
            questions, golds = [], []
            for person in range(people):
                likes = rng.sample(NEWS_CATEGORIES, 2)
                rows = [(rng.choice(PLACES), rng.choice(likes)) for _ in range(12)]
                items = [
                    {"title": f"The {place} in {label}", "text": f"A report on the old {place} and its friends"}
                    | ({"category": label} if task == "LaMP_2N" else {})
                    for place, label in rows
                ]
                for n in range(4):
                    place, label = rows[n]
                    name = f"{task}{split}{person}{n}"
                    text = TASKS[task].make_input(text=f"People meet at the {place} again on day {n}")
                    profile = [{"id": f"{name}{i}", **item} for i, item in enumerate(items) if i != n]
                    questions.append({"id": name, "user_id": f"{split}{person}", "input": text, "profile": profile})
                    golds.append({"id": name, "output": label if task == "LaMP_2N" else f"The {place} in {label}"})
            place = folder / task
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{split}_questions.json").write_text(json.dumps(questions))
            (place / f"{split}_outputs.json").write_text(json.dumps({"task": task, "golds": golds}))


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no weights; `make weights` fetches them")
def test_a_pretrained_model_goes_through_all_stages(tmp_path: Path) -> None:
    made_files(tmp_path / "lamp")
    command = [sys.executable, "-m", "tagpr_rl", "run", str(RECIPE), f"data.lamp_dir={tmp_path / 'lamp'}"]
    command += [f"model.path={WEIGHTS}", f"out={tmp_path}", "log.wandb=disabled"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=1100, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    (found,) = (tmp_path / "smollm2_smoke").glob("*_eval/eval.json")
    results = json.loads(found.read_text())
    assert {"model", "direct", "sft", "guided", "explore"} <= set(results["results"])
    prompts = json.loads(next((tmp_path / "smollm2_smoke").glob("*_chains/chains.json")).read_text())
    assert prompts["kept"] == prompts["asked"] and prompts["teacher"]["name"] == "grounded"


@pytest.mark.parametrize("given", ["", "/no/such/folder"])
def test_make_real_says_what_the_folder_must_be(given: str) -> None:
    done = subprocess.run(
        ["make", "-s", "real", f"REAL={given}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"REAL='{given}' is no folder" in done.stderr and "LaMP_2N/train_questions.json" in done.stderr
