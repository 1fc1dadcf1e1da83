"""The whole pipeline on the real stack: Ray, verl, vLLM, FSDP2; one run, many looks at what it wrote."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tagpr_rl.backend.rollout.saved import read_tokens
from tagpr_rl.cli import study
from tagpr_rl.reward.advantages.group import group_advantages
from tagpr_rl.reward.components import short_form
from tagpr_rl.reward.rubric import Rubric
from tagpr_rl.run.layout import RunDir
from tagpr_rl.run.open import read_resolved
from tagpr_rl.tags.schema import default_schema

pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
PROMPTS, GROUP = 8, 4


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run launch.py as a user does."""
    command = [sys.executable, "launch.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stage(run: Path, name: str) -> Path:
    (actual,) = (path for path in run.iterdir() if re.fullmatch(rf"\d+_{name}", path.name))
    return actual


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of recipes/smoke.yaml."""
    out = tmp_path_factory.mktemp("runs")
    done = launch("run", "recipes/smoke.yaml", f"out={out}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "report.html" in done.stdout
    return out / "smoke"


def test_every_stage_left_a_manifest_and_the_report_names_all_models(run: Path) -> None:
    stages = sorted(path.name for path in run.iterdir() if re.match(r"\d+_", path.name))
    assert len(stages) == 11
    assert all((run / name / "manifest.json").is_file() for name in stages)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["questions"]["total"] == (60 + 12) * 8
    assert set(report["models"]) == {"base", "sft", "guided", "explore"}
    assert 0 < report["bounds"]["blind"]["mean"] < report["bounds"]["oracle"]["mean"] <= 1
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2 and 'id="viewer-data"' in page  # the viewer's data and the viewer


@pytest.mark.parametrize("name, steps", [("guided", 3), ("explore", 2)])
def test_metrics_have_every_reward_component_at_every_step(run: Path, name: str, steps: int) -> None:
    actual = rows(stage(run, name) / "metrics.jsonl")
    assert [row["step"] for row in actual] == list(range(1, steps + 1))
    for row in actual:
        for key in ("total", "task", "format", "tag", "repetition"):
            assert f"reward/{key}/mean" in row
        assert sum(value for key, value in row.items() if key.startswith("parse/")) == pytest.approx(1.0)
        assert ("reward/prmu/mean" in row) == (name == "guided")
        assert row["prmu/masked_fraction"] == 0.0


def test_rollout_and_actor_probabilities_agree_at_every_step(run: Path) -> None:
    """The guided stage computes both (reuse_rollout_logprobs: false). For the bounds see test_exactness.py."""
    actual = rows(stage(run, "guided") / "metrics.jsonl")
    assert len(actual) == 3
    assert max(row["training/rollout_probs_diff_max"] for row in actual) < 5e-6
    assert max(row["training/rollout_probs_diff_mean"] for row in actual) < 1e-6
    # The weights of the rollout correction are the ratios of those probabilities; without it they are not logged.
    for row in actual:
        assert row["rollout_corr/rollout_is_min"] == pytest.approx(1, abs=1e-4)
        assert row["rollout_corr/rollout_is_max"] == pytest.approx(1, abs=1e-4)
    assert not any("rollout_corr/rollout_is_max" in row for row in rows(stage(run, "explore") / "metrics.jsonl"))


def test_on_policy_updates_start_without_divergence(run: Path) -> None:
    for name in ("guided", "explore"):
        assert all(abs(row["actor/ppo_kl"]) < 1e-6 for row in rows(stage(run, name) / "metrics.jsonl"))


@pytest.mark.parametrize("name", ["guided", "explore"])
def test_rollouts_hold_the_rubrics_own_numbers(run: Path, name: str) -> None:
    """What verl trained on is what the rubric says of the text, component by component."""
    weights = json.loads((run / "resolved.json").read_text(encoding="utf-8"))["stages"][name]["weights"]
    assert (weights["alpha"] > 0) == (weights["beta"] > 0) == (name == "guided")
    rubric = Rubric(default_schema(), short_form(**weights))
    for file in sorted((stage(run, name) / "rollouts").glob("step_*.jsonl")):
        actual = rows(file)
        assert len(actual) == PROMPTS * GROUP
        for row in actual:
            prmu = row["reward_prmu"] if row["prmu_status"] == "scored" else None
            expected = rubric.score(
                row["response"], task=row["task"], gold=row["gold"], prmu=prmu, prmu_status=row["prmu_status"]
            )
            assert row["reward_total"] == pytest.approx(expected.total)
            assert row["reward_tag"] == pytest.approx(expected.components["tag"])
            assert row["parse_status"] == expected.parse_status
            assert row["prmu_status"] == ("scored" if name == "guided" else "off")


def test_advantages_are_those_of_the_groups(run: Path) -> None:
    for file in sorted((stage(run, "guided") / "rollouts").glob("step_*.jsonl")):
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in rows(file):
            groups.setdefault(f"{row['task']}/{row['record_id']}", []).append(row)
        for group in groups.values():
            expected = group_advantages([row["reward_total"] for row in group])
            assert [row["advantage"] for row in group] == pytest.approx(expected, abs=1e-6)


def test_a_replay_of_the_saved_responses_finds_no_difference(run: Path) -> None:
    """Rewards, advantages, step credit and who was dropped, to 1e-6; PRMU's scores to what its batches round."""
    for arguments in (("guided", "--prmu"), ("explore",)):
        done = launch("replay", str(run), *arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    lines = [row for file in (stage(run, "explore") / "rollouts").glob("*.jsonl") for row in rows(file)]
    assert any(row.get("step_credit") for row in lines)  # the others are malformed or dropped
    for row in lines:
        assert not row.get("masked") or (row["advantage"] == 0.0 and row["why"] == "zero variance")
    dropped = sum(row["algo/dropped_groups_total"] for row in rows(stage(run, "explore") / "metrics.jsonl"))
    assert dropped == sum(bool(row.get("masked")) for row in lines) / GROUP


def test_training_on_saved_responses_gives_the_weights_of_the_live_stage(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    guided = json.loads((run / "resolved.json").read_text(encoding="utf-8"))["stages"]["guided"]
    again = json.dumps({**guided, "rollouts_from": "guided"})
    done = launch("run", "recipes/smoke.yaml", f"out={tmp_path}", f"stages.again={again}", "--until", "again")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    live, replayed, before = (
        load_file(stage(copy, name) / "hf" / "model.safetensors") for name in ("guided", "again", "sft")
    )
    moved = max(float((live[key] - before[key]).abs().max()) for key in live)
    apart = max(float((live[key] - replayed[key]).abs().max()) for key in live)
    assert moved > 2e-5 and apart < 1e-6  # measured: 1.5e-8 after two steps
    for file in sorted((stage(copy, "again") / "rollouts").glob("*.parquet")):
        saved = stage(copy, "guided") / "rollouts" / file.name
        assert read_tokens(file) == read_tokens(saved)  # ids and log-probabilities alike


def test_the_exploratory_stage_stopped_early_on_the_questions_asked_for(run: Path) -> None:
    manifest = json.loads((stage(run, "explore") / "manifest.json").read_text(encoding="utf-8"))
    stopped = manifest["details"]["stopped"]
    assert (stopped["step"], stopped["of"], stopped["rule"]) == (2, 4, "plateau")
    assert any(note.startswith("stopped at step 2 of 4: plateau: ") for note in manifest["notes"])
    assert manifest["details"]["filter"] == {"all": 480, "questions": 240}
    assert manifest["details"]["carried"]["weights"] == "from 'guided', as published in its hf/"
    metrics = rows(stage(run, "explore") / "metrics.jsonl")
    assert max(row["response_length/max"] for row in metrics) <= 150


def test_a_stage_that_stopped_early_does_not_go_on_when_it_is_resumed(run: Path, tmp_path: Path) -> None:
    """As if the run had been killed after the last checkpoint and before the manifest."""
    copy = tmp_path / "smoke"
    shutil.copytree(run, copy)
    shutil.rmtree(stage(copy, "eval"))
    explore = stage(copy, "explore")
    weights = (explore / "hf" / "model.safetensors").read_bytes()
    (explore / "manifest.json").unlink()
    shutil.rmtree(explore / "hf")
    done = launch("resume", str(copy), "--until", "explore")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    manifest = json.loads((explore / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["details"]["stopped"]["step"] == 2 and manifest["seconds"] < 20
    assert (explore / "hf" / "model.safetensors").read_bytes() == weights


def test_a_sweep_shares_what_is_made_and_compares_its_arms(run: Path, tmp_path: Path) -> None:
    """The finished run's stages are the sweep's own (same recipe, same seed), so only its evaluation is left."""
    sweep = tmp_path / "two.yaml"
    sweep.write_text(
        f"{{name: two, recipe: {ROOT / 'recipes' / 'smoke.yaml'}, out: {tmp_path}, seeds: [1], also: [sft], "
        "questions: 48, arms: {full: {}, no_exploratory: {stages.explore: null}, "
        "answers: {stages.sft.dataset: answers, stages.sft.steps: 20, stages.prmu: null, stages.guided: null, "
        "stages.explore: null}}}",
        encoding="utf-8",
    )
    names = ("data", "model", "prompts", "base", "chains", "sft", "prmu", "guided", "explore")
    for number, name in enumerate(names, start=1):
        shutil.copytree(stage(run, name), tmp_path / "two" / "two-seed1" / f"{10 * number:03d}_{name}")
    done = launch("sweep", str(sweep))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("done before") == 9
    facts = json.loads((tmp_path / "two" / "sweep.json").read_text(encoding="utf-8"))
    evaluated = json.loads((stage(run, "eval") / "eval.json").read_text(encoding="utf-8"))["models"]
    models = {"full": "explore", "no_exploratory": "guided"}
    assert facts["questions"] == 48 and facts["seeds"] == [1] and list(facts["arms"]) == [*models, "answers"]
    made = tmp_path / "two" / "two-seed1"
    requested = json.loads((stage(made, "eval") / "eval.json").read_text(encoding="utf-8"))["models"]
    assert requested["sft_answers"]["parse_counts"]["NO_THOUGHT"] == 48  # asked for direct answers, and it gives them
    trained = {name: json.loads((stage(made, name) / "manifest.json").read_text(encoding="utf-8"))["metrics"]
               for name in ("sft", "sft_answers", "chains")}  # fmt: skip
    assert trained["sft_answers"]["examples"] == trained["sft"]["examples"] == trained["chains"]["kept"]
    for arm, model in models.items():
        keys = {question["key"] for question in requested[model]["questions"]}
        scores: dict[str, list[float]] = {}
        for question in evaluated[model]["questions"]:
            if question["key"] in keys:
                scores.setdefault(question["task"], []).append(question["score"])
        expected = sum(sum(own) / len(own) for own in scores.values()) / len(scores)
        assert facts["arms"][arm]["per_seed"]["1"]["score"] == pytest.approx(expected, abs=0.02)
    assert launch("sweep", str(sweep)).stdout.count("11 of 11 stages done") == 1


def test_altered_thoughts_change_answers_and_unaltered_ones_do_not(run: Path) -> None:
    done = launch("faithful", str(run), "--stage", "sft", "--questions", "48")
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads((run / "faithful" / "sft.json").read_text(encoding="utf-8"))
    actual = facts["alterations"]
    assert facts["questions"] == 48 and actual["unchanged"]["n"] == facts["well_formed"] > 12
    assert actual["unchanged"]["changed"][0] <= 0.05
    assert max(row["changed"][0] for row in actual.values()) > 0.02
    assert {"drop_all", "drop_step", "shuffle_steps", "profile_dropped", "profile_swapped"} <= set(actual)
    assert all(0 <= low <= value <= high <= 1 for value, low, high in (row["changed"] for row in actual.values()))
    assert facts["tags"]


@pytest.mark.parametrize("name", ["guided", "explore"])
def test_a_rollout_line_holds_the_whole_breakdown(run: Path, name: str) -> None:
    for file in sorted((stage(run, name) / "rollouts").glob("step_*.jsonl")):
        actual = rows(file)
        for row in actual:
            part = {key: row[f"reward_{key}"] for key in ("task", "format", "tag", "prmu", "repetition")}
            weights = row["weights"]
            assert weights["task_format"] == 1.0 and set(weights) <= {"task_format", "tag", "prmu_format", "repetition"}
            part["prmu_format"] = part["prmu"] * part["format"]
            added = sum(weights.get(key, 0.0) * part[key] for key in ("tag", "prmu_format", "repetition"))
            assert row["reward_total"] == pytest.approx(part["task"] * part["format"] + added, abs=1e-6)
            tag = row["tag_parts"]
            assert (tag is None) == (row["parse_status"] != "OK")
            assert part["tag"] == pytest.approx(tag["coverage"] * tag["sound"] if tag else 0.0)
        groups = {(row["task"], row["record_id"], row["group"]) for row in actual}
        assert len(groups) == len({row["group"] for row in actual}) == PROMPTS


def test_every_metric_of_the_view_is_logged(run: Path) -> None:
    actual = {f"{name}/{key}" for name in ("guided", "explore") for row in rows(stage(run, name) / "metrics.jsonl")
             for key in row}  # fmt: skip
    sections = study.view_of(read_resolved(RunDir(run)))
    wanted = {metric for section in sections for panel in section.panels for metric in panel.metrics}
    assert len(wanted) > 60 and wanted - actual == set()


def test_phases_and_driver_only_time_make_the_step(run: Path) -> None:
    for name in ("guided", "explore"):
        for row in rows(stage(run, name) / "metrics.jsonl"):
            phases = {key: value for key, value in row.items() if key.startswith("phase/") and key.endswith("_s")}
            assert sum(phases.values()) + row["driver/only_s"] == pytest.approx(row["timing_s/step"], abs=1e-3)
            assert {"phase/generation_s", "phase/reward_s", "phase/update_actor_s"} <= set(phases)
            assert 0 < row["driver/hook_s"] < 1 and row["staleness/mean"] == 0
            assert row["training/rollout_probs_diff_max"] < 5e-6  # explore's is measured in the update
            assert sum(row[f"task/{task}/responses"] for task in tasks_of(row)) == PROMPTS * GROUP
            assert row["tag/conclude/use"] <= row.get("parse/OK", 0.0)
    assert any("prmu/task_correlation" in row for row in rows(stage(run, "guided") / "metrics.jsonl"))


def tasks_of(row: dict[str, Any]) -> set[str]:
    return {key.split("/")[1] for key in row if key.startswith("task/")}


def test_an_alert_is_raised_once_and_is_in_the_manifest(run: Path) -> None:
    """The explore stage calls every malformed response too many."""
    (alert,) = [row for row in rows(stage(run, "explore") / "alerts.jsonl") if row["kind"] == "malformed"]
    assert alert["step"] == 1 and alert["limit"] == 0.01 and alert["value"] > 0.01
    notes = json.loads((stage(run, "explore") / "manifest.json").read_text(encoding="utf-8"))["notes"]
    assert any(note == f"alert at step 1, malformed: {alert['text']}" for note in notes)
    assert not (stage(run, "guided") / "alerts.jsonl").exists()


def test_published_weights_are_what_their_config_says(run: Path) -> None:
    from safetensors.torch import load_file

    for name in ("sft", "guided", "explore"):
        folder = stage(run, name) / "hf"
        dtypes = {str(t.dtype) for f in folder.glob("*.safetensors") for t in load_file(f).values()}
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert dtypes == {f"torch.{config['dtype']}"} == {"torch.float32"}


def test_each_grpo_stage_moved_the_weights_of_the_one_before(run: Path) -> None:
    from safetensors.torch import load_file

    def weights(name: str) -> dict[str, Any]:
        return load_file(stage(run, name) / "hf" / "model.safetensors")

    sft, guided, explore = weights("sft"), weights("guided"), weights("explore")
    for before, after in ((sft, guided), (guided, explore)):
        moved = [float((after[key] - before[key]).abs().max()) for key in before]
        assert all(0 < change < 0.05 for change in moved)


def test_evaluation_generated_with_vllm_scores_every_held_out_question(run: Path) -> None:
    evaluation = json.loads((stage(run, "eval") / "eval.json").read_text(encoding="utf-8"))
    for result in (*evaluation["models"].values(), *evaluation["controls"].values()):
        assert result["n"] == 12 * 8
    assert evaluation["models"]["sft"]["strict_rate"] > 0.5
    assert set(evaluation["controls"]) == {"shuffled", "empty"}


def test_the_base_counts_with_the_prompt_that_was_best_on_training_questions(run: Path) -> None:
    evaluation = json.loads((stage(run, "first") / "eval.json").read_text(encoding="utf-8"))
    choice = evaluation["base_prompts"]["base"]
    assert set(choice["training_scores"]) == {"thinking", "direct"} and choice["thinking_tokens"] == 64
    assert choice["chosen"] == max(choice["training_scores"], key=choice["training_scores"].get)
    (other,) = {"thinking", "direct"} - {choice["chosen"]}
    assert list(evaluation["other_prompts"]) == [f"base-{other}"] and set(evaluation["models"]) == {"base", "sft"}
    for result in (*evaluation["models"].values(), *evaluation["other_prompts"].values()):
        assert result["n"] == 24 and result["truncated"] == sum(q["truncated"] for q in result["questions"]) / 24
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert f"base-{other}" in report["other_prompts"] and report["models"]["sft"]["truncated"] is not None


def test_the_trained_model_is_teacher_and_labeller_through_structured_output(run: Path, tmp_path: Path) -> None:
    """Every chain has one outcome, every label is valid JSON, kappa is computed. The labels' quality means nothing."""
    worker = [sys.executable, "tests/support/chains_worker.py", str(stage(run, "sft") / "hf"), str(stage(run, "data"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*worker, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    actual = json.loads(done.stdout.strip().splitlines()[-1])
    for name in ("own", "rules"):
        facts = actual[name]["facts"]
        assert facts["asked"] == actual[name]["outcomes"] == 48
        assert facts["kept"] + sum(facts["rejected"].values()) == 48
        assert facts["teacher"]["requests"] == 48 and facts["teacher"]["completion_tokens"] > 48 * 5
    labels = [json.loads(text) for text in actual["labels"]]
    assert len(labels) == actual["own"]["facts"]["labeller"]["statuses"]["OK"] > 20
    tags = set(default_schema().names)
    for reply in labels:
        assert all(set(step) == {"i", "tag"} and step["tag"] in tags for step in reply["steps"])
        assert all(0 <= step["i"] < len(reply["steps"]) for step in reply["steps"])
    agreement = actual["own"]["facts"]["agreement"]
    assert agreement["chains"] > 20 and -1 <= agreement["kappa"] <= 1
    assert agreement["steps"] == sum(n for row in agreement["confusion"].values() for n in row.values())
    assert actual["rules"]["facts"]["kappa"] == 1.0  # rules label as before, and the chains are the model's own


def test_the_report_shows_how_the_chains_came_about(run: Path) -> None:
    chains = json.loads((run / "report.json").read_text(encoding="utf-8"))["chains"]
    assert chains["kept"] + sum(chains["rejected"].values()) == chains["asked"]
    assert chains["kappa"] == 1.0 and chains["labeller"]["deterministic"]
    assert chains["evidence"]["own_steps"] > chains["evidence"]["other_steps"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in page for name in ("chain_reasons", "chain_tags", "chain_sources"))


def test_a_second_run_does_nothing(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.glob("*/manifest.json")}
    done = launch("run", "recipes/smoke.yaml", f"out={run.parent}")
    assert done.returncode == 0
    assert done.stdout.count("done before") == 11
    assert {path: path.stat().st_mtime_ns for path in run.glob("*/manifest.json")} == before


def test_a_changed_recipe_is_refused_and_named(run: Path) -> None:
    done = launch("run", "recipes/smoke.yaml", f"out={run.parent}", "stages.sft.lr=1e-3")
    assert done.returncode == 2
    assert "lr" in done.stderr and "0.003" in done.stderr and "0.001" in done.stderr


def test_a_flipped_bit_in_the_weights_is_an_error_that_names_the_file(run: Path) -> None:
    explore, evaluated = stage(run, "explore"), stage(run, "eval")
    weights = stage(run, "guided") / "hf" / "model.safetensors"
    original = weights.read_bytes()
    try:
        for folder in (explore, evaluated):
            folder.rename(run / f"kept_{folder.name}")
        weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        done = launch("run", "recipes/smoke.yaml", f"out={run.parent}", "--until", "explore")
        assert done.returncode == 2
        assert "model.safetensors" in done.stderr and "SHA-256" in done.stderr
        assert not (explore / "manifest.json").exists()
    finally:
        weights.write_bytes(original)
        for folder in (explore, evaluated):
            shutil.rmtree(folder, ignore_errors=True)
            (run / f"kept_{folder.name}").rename(folder)


def test_an_exported_stage_loads_in_transformers_and_answers_in_vllm(run: Path, tmp_path: Path) -> None:
    """vLLM reads the folder as `vllm serve` does; both say the same first token."""
    folder = tmp_path / "explore"
    done = launch("export", str(run), "--stage", "explore", "--dtype", "bfloat16", "--out", str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| explore | grpo | 2 |" in (folder / "README.md").read_text(encoding="utf-8")
    requested = rows(stage(run, "guided") / "rollouts" / "step_0001.jsonl")[0]["prompt"]
    code = f"""
import os
os.environ |= {{"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1", "VERL_PLATFORM": "cpu"}}
from tagpr_rl.backend import platform_cpu
platform_cpu.alias_vllm_distribution()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm import LLM, SamplingParams
folder, text = {str(folder)!r}, {requested!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer(text)["input_ids"]
model = AutoModelForCausalLM.from_pretrained(folder)
assert model.dtype == torch.bfloat16
with torch.no_grad():
    top = model(torch.tensor([ids])).logits[0, -1].float().topk(2)
llm = LLM(folder, max_model_len=1024, enforce_eager=True, kv_cache_memory_bytes=1 << 26,
          distributed_executor_backend="uni", disable_log_stats=True)
(out,) = llm.generate([dict(prompt_token_ids=ids)], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
print("top", top.indices[0].item(), out.outputs[0].token_ids[0], len(out.outputs[0].text) > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("top ")]
    _, ours, served, text = line.split()
    assert ours == served and text == "True"


def test_walk_live_asks_the_trained_model(run: Path) -> None:
    done = launch("walk", "recipes/smoke.yaml", f"out={run.parent}", "--record", "3", "--live")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "examine_examples" in done.stdout and "advantage" in done.stdout
