"""A sweep: which stages arms share, how arms are compared, and what is refused; numbers by hand."""

from __future__ import annotations

import copy
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_runs import RAW
from rich.console import Console

from tagpr_rl.cli import main
from tagpr_rl.cli import sweep as sweep_cli
from tagpr_rl.config import dump_recipe, recipe_from_dict, set_key, upstream
from tagpr_rl.eval.arms import compare_arms, over_seeds, question_scores, seed_result
from tagpr_rl.files import write_json
from tagpr_rl.run.layout import RunDir, stage_dir
from tagpr_rl.run.manifest import make_manifest, stage_facts, write_manifest
from tagpr_rl.run.sweep import SeedPlan, final_model, load_sweep, plan_seed
from tagpr_rl.types import TagprError

FOLDER = Path(__file__).resolve().parents[3] / "recipes" / "sweeps"
SHARED = ["data", "model", "prompts", "base", "chains", "sft", "prmu", "guided", "explore"]


def write(folder: Path, **sweep: Any) -> Path:
    (folder / "r.yaml").write_text(yaml.safe_dump(RAW, sort_keys=False), encoding="utf-8")
    path = folder / "s.yaml"
    raw = {"name": "s", "recipe": "r.yaml", "out": str(folder / "out"), "seeds": [3], **sweep}
    path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return path


def plan(folder: Path, arms: dict[str, Any], **sweep: Any) -> SeedPlan:
    actual = load_sweep(write(folder, arms=arms, **sweep))
    return plan_seed(actual, actual.seeds[0])


def test_equal_stages_are_one_and_others_are_called_after_their_arm(tmp_path: Path) -> None:
    actual = plan(
        tmp_path,
        {
            "full": {},
            "no_tags": {"stages.guided.weights.alpha": 0},
            "no_exploratory": {"stages.explore": None},
            "late": {"stages.explore.lr": 0.5},
        },
        also=["sft"],
    )
    names = list(actual.recipe.stages)
    assert names == [*SHARED, "guided_no_tags", "explore_no_tags", "explore_late", "eval"]
    assert actual.models == {
        "full": "explore", "no_tags": "explore_no_tags", "no_exploratory": "guided", "late": "explore_late",
    }  # fmt: skip
    raw = actual.recipe.model_dump(mode="json")["stages"]
    assert raw["explore_no_tags"]["init"] == "guided_no_tags" and raw["explore_late"]["init"] == "guided"
    assert raw["guided_no_tags"]["prmu"] == "prmu" and raw["guided_no_tags"]["weights"]["alpha"] == 0
    assert raw["eval"]["models"] == ["sft", "explore", "explore_no_tags", "guided", "explore_late"]
    assert {block["seed"] for block in raw.values()} == {3} and actual.recipe.name == "s-seed3"


def test_arms_that_come_to_the_same_share_their_model(tmp_path: Path) -> None:
    # PRMU with weight 0 is not asked, so whose profile it would see makes no difference.
    arms = {
        "full": {},
        "same": {"stages.guided.weights.alpha": 0.2},
        "no_prmu": {"stages.guided.weights.beta": 0},
        "none_shuffled": {"stages.guided.weights.beta": 0, "stages.guided.prmu_users": "shuffled"},
    }
    actual = plan(tmp_path, arms)
    assert actual.models["same"] == "explore" and actual.models["none_shuffled"] == "explore_no_prmu"
    assert actual.recipe.stages["guided_no_prmu"].prmu is None  # type: ignore[union-attr]


def test_what_no_arm_needs_is_left_out(tmp_path: Path) -> None:
    actual = plan(tmp_path, {"a": {"stages.guided.weights.beta": 0}, "b": {"stages.guided": {
        "kind": "grpo", "init": "base", "weights": {"beta": 0}}}})  # fmt: skip
    assert "prmu" not in actual.recipe.stages


def test_a_grid_makes_an_arm_per_combination(tmp_path: Path) -> None:
    grid = {"stages.guided.weights.alpha": [0, 0.2], "stages.guided.weights.beta": [0.2, 0.5]}
    actual = plan(tmp_path, {"full": {}}, grid=grid)
    assert list(actual.models) == [
        "full", "alpha_0_beta_0p2", "alpha_0_beta_0p5", "alpha_0p2_beta_0p2", "alpha_0p2_beta_0p5",
    ]  # fmt: skip
    assert actual.models["alpha_0p2_beta_0p2"] == "explore"  # the recipe's own weights


def test_an_arm_with_its_own_chains_reads_them(tmp_path: Path) -> None:
    actual = plan(tmp_path, {"full": {}, "wrong": {"stages.chains.error_rate": 0.5}})
    assert set(upstream(actual.recipe, "sft_wrong")) >= {"chains_wrong", "base"}
    assert "chains" not in upstream(actual.recipe, "sft_wrong")


def test_an_arm_that_would_read_another_arm_s_chains_is_refused(tmp_path: Path) -> None:
    # `late` shares the first arm's chains, but its own SFT stage comes after the second arm's.
    arms = {"full": {}, "wrong": {"stages.chains.error_rate": 0.5}, "late": {"stages.sft.lr": 0.5}}
    with pytest.raises(TagprError, match="arm 'late': stage 'sft' would read chains_wrong of another arm instead of"):
        plan(tmp_path, arms)
    arms = {"full": {}, "late": arms["late"], "wrong": arms["wrong"]}
    assert plan(tmp_path, arms).models["late"] == "explore_late"


KEYS: dict[str, list[Any]] = {
    "stages.sft.lr": [1e-3, 2e-3],
    "stages.guided.weights.alpha": [0, 0.1],
    "stages.guided.weights.beta": [0, 0.2],
    "stages.explore.steps": [5, 6],
}


@st.composite
def arm_keys(draw: st.DrawFn) -> dict[str, Any]:
    keys = draw(st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in KEYS.items()}))
    if "stages.explore.steps" not in keys and draw(st.booleans()):
        keys["stages.explore"] = None
    return keys


@given(st.lists(arm_keys(), min_size=2, max_size=5))
def test_every_arm_finds_its_own_recipe_in_the_combined_one(drawn: list[dict[str, Any]]) -> None:
    """Down the chain of `init`, each stage is what the arm alone would have, and no stage stands there twice."""
    arms = {f"arm{i}": keys for i, keys in enumerate(drawn)}
    with tempfile.TemporaryDirectory() as folder:
        actual = plan(Path(folder), arms)
    blocks = dump_recipe(actual.recipe)["stages"]
    for arm, keys in arms.items():
        raw = copy.deepcopy(RAW)
        for key, value in {"stages.eval": None, **keys}.items():
            set_key(raw, key, value, where="here")
        alone = recipe_from_dict(raw, source=arm)
        mine, own = actual.models[arm], final_model(alone)
        while blocks[mine]["kind"] != "model":
            block, wanted = dict(blocks[mine]), dump_recipe(alone)["stages"][own] | {"seed": 3}
            mine, own = block.pop("init"), wanted.pop("init")
            if wanted.get("weights", {}).get("beta") == 0:
                wanted["prmu"] = None
            elif "prmu" in block:  # trained on this arm's own SFT stage
                assert blocks[block.pop("prmu")]["init"] == mine and wanted.pop("prmu") == "prmu"
            assert block == wanted
    stages = [json.dumps(block, sort_keys=True) for block in blocks.values()]
    assert len(set(stages)) == len(stages)


@pytest.mark.parametrize(
    "sweep, part",
    [
        ({"arms": {"a": {}}}, "compares two arms or more"),
        ({"arms": {"a": {}, "b": {"data.limit": 3}}}, "not in data.limit"),
        ({"arms": {"a": {}, "B-2": {}}}, "arms.B-2"),
        ({"arms": {"a": {}, "b": {}}, "seeds": [1, 1]}, "seeds: 1 stands twice"),
        ({"arms": {"a": {}, "b": {}}, "seed": [1]}, "seed: "),
        ({"arms": {"a": {}, "b": {"stages.guidde.lr": 1}}}, "(arm 'b'): stages.guidde.lr names no stage"),
        ({"arms": {"a": {}, "b": {"stages.eval.questions": 1}}}, "evaluations are the sweep's own"),
        ({"arms": {"a": {}, "b": {"stages.guided": None}}}, "stages.explore.init: it needs stage 'guided', which"),
        ({"arms": {"a": {}, "b": {"stages.guided.lrr": 1}}}, "stages.guided.lrr: unknown key; did you mean 'lr'?"),
        ({"arms": {"a": {}, "b": {}}, "also": ["sftt"]}, "has no stage 'sftt'"),
    ],
)
def test_a_wrong_sweep_is_one_clear_error(
    tmp_path: Path, sweep: dict[str, Any], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(write(tmp_path, **sweep)), "--dry-run"]) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_project_s_sweeps(path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.name == path.stem and sweep.seeds == (1, 2, 3)
    actual = plan_seed(sweep, 2)
    kinds = [stage.kind for stage in actual.recipe.stages.values()]
    answers = path.stem == "ablations"  # the arm on direct answers: an SFT stage of its own, no GRPO
    arms = len(set(actual.models.values())) - answers
    assert kinds.count("grpo") == {"ablations": 2 * arms - 1, "weights": arms}[path.stem]
    assert kinds.count("sft") == 2 + answers and kinds.count("prmu") == kinds.count("evaluate") == 1
    steps = sum(stage.steps for stage in actual.recipe.stages.values() if stage.kind == "grpo")
    assert steps == {"ablations": 24, "weights": 12}[path.stem] * arms


# Two tasks, two users. Per-question means over the seeds 1 and 2:
#   full  a 1.0, b 0.5, c 0.5     none  a 0.5, b 0.5, c 0.0
TASKS = {"a": "LaMP_1", "b": "LaMP_1", "c": "LaMP_2"}
USERS = {"a": "u", "b": "v", "c": "u"}
SCORES: dict[str, dict[int, dict[str, float]]] = {
    "full": {1: {"a": 1.0, "b": 0.0, "c": 1.0}, 2: {"a": 1.0, "b": 1.0, "c": 0.0}},
    "none": {1: {"a": 0.0, "b": 0.0, "c": 0.0}, 2: {"a": 1.0, "b": 1.0, "c": 0.0}},
}


def test_arms_by_hand() -> None:
    actual = compare_arms(SCORES, USERS, TASKS)
    assert actual["full"]["per_seed"] == {
        "1": {"score": 0.75, "by_task": {"LaMP_1": 0.5, "LaMP_2": 1.0}},
        "2": {"score": 0.5, "by_task": {"LaMP_1": 1.0, "LaMP_2": 0.0}},
    }
    assert actual["full"]["score"][0] == (0.75 + 0.5) / 2
    assert actual["full"]["against_first"] == [0.0, 0.0, 0.0] and actual["full"]["seed_sd"] == 0.0
    # LaMP_1: (-.5 + 0) / 2; LaMP_2: -.5. Seeds: 0 - .75 and .5 - .5.
    difference, low, high = actual["none"]["against_first"]
    assert difference == (-0.25 - 0.5) / 2 and low <= difference <= high
    assert actual["none"]["seed_sd"] == pytest.approx(0.75 / 2**0.5)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_a_difference_is_the_difference_of_the_scores(one: list[float], other: list[float]) -> None:
    scores = {"x": {1: dict(zip("abc", one, strict=True))}, "y": {1: dict(zip("abc", other, strict=True))}}
    actual = compare_arms(scores, USERS, TASKS)
    assert actual["y"]["against_first"][0] == pytest.approx(
        actual["y"]["score"][0] - actual["x"]["score"][0], abs=1e-12
    )
    assert actual["y"]["seed_sd"] is None


def test_a_malformed_response_counts_as_nothing_in_the_strict_score() -> None:
    questions = [
        {"key": "a", "score": 1.0, "parse_status": "OK"},
        {"key": "b", "score": 0.5, "parse_status": "TRUNCATED"},
    ]
    assert question_scores({"questions": questions}, "score") == {"a": 1.0, "b": 0.5}
    assert question_scores({"questions": questions}, "strict_score") == {"a": 1.0, "b": 0.0}


def test_other_questions_are_refused() -> None:
    with pytest.raises(TagprError, match=r"1 questions \(first 'b'\) are not in every seed's"):
        over_seeds([{"a": 1.0, "b": 0.0}, {"a": 1.0}])
    with pytest.raises(TagprError, match=r"\(first 'c'\) are not in every arm's"):
        seed_result({"a": 1.0, "b": 1.0}, TASKS)


def finished(found: SeedPlan, scores: dict[str, dict[str, float]]) -> None:
    """Every stage of a seed's run as if it had been made, with these scores in its evaluation."""
    run = RunDir(found.recipe.out / found.recipe.name)
    for name in found.recipe.stages:
        folder = stage_dir(found.recipe, run, name)
        outputs = [folder.root / "out.json"]
        write_json(outputs[0], name)
        if name == "data":
            outputs.append(folder.root / "data.json")
            write_json(outputs[1], {"bounds": {"blind": {"mean": 0.25}}})
        if name == "eval":
            outputs.append(folder.root / "eval.json")
            models = {
                model: {
                    "questions": [
                        {"key": key, "task": TASKS[key], "user_id": USERS[key], "score": score, "parse_status": "OK"}
                        for key, score in rows.items()
                    ]
                }
                for model, rows in scores.items()
            }
            write_json(outputs[1], {"models": models})
        facts, kind = stage_facts(found.recipe, run, name), found.recipe.stages[name].kind
        write_manifest(
            folder,
            make_manifest(folder, name, kind, facts, outputs=outputs, started="x", seconds=2.0),
        )


def test_the_result_grows_seed_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = {"full": {}, "none": {"stages.explore": None}}
    path = write(tmp_path, arms=arms, seeds=[1, 2])
    sweep = load_sweep(path)
    for seed in (1, 2):
        actual = plan_seed(sweep, seed)
        finished(actual, {actual.models[arm]: SCORES[arm][seed] for arm in arms})
        assert main(["sweep", str(path), "--seeds", str(seed)]) == 0
        facts = json.loads((tmp_path / "out" / "s" / "sweep.json").read_text(encoding="utf-8"))
        assert facts["seeds"] == list(range(1, seed + 1))
    assert facts["format"] == 1 and facts["name"] == "s" and facts["questions"] == 3 and facts["users"] == 2
    assert facts["arms"]["none"]["overrides"] == {"stages.explore": None}
    assert facts["arms"]["none"]["per_seed"]["1"]["score"] == 0.0
    assert facts["arms"]["none"]["against_first"][0] == -0.375
    assert facts["seconds"] == {"1": 20.0, "2": 20.0}  # ten stages of two seconds
    assert facts["bounds"] == {"blind": 0.25}
    text = (tmp_path / "out" / "s" / "sweep.txt").read_text(encoding="utf-8")
    assert "-0.375 [" in text and "0.625 [" in text
    assert "2 of 2 seeds" not in text and "(1 of 1), 2 arms, 10 of 10 stages done" in capsys.readouterr().out


def test_a_seed_that_is_not_the_sweep_s_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, arms={"a": {}, "b": {"stages.explore": None}})
    assert main(["sweep", str(path), "--seeds", "9"]) == 2
    assert "--seeds 9: the sweep's seeds are 3" in capsys.readouterr().err


def test_overrides_hold_for_all_arms_and_out_is_the_sweep_s(tmp_path: Path) -> None:
    path = write(tmp_path, arms={"full": {}, "b": {"stages.guided.lr": 0.5}})
    actual = load_sweep(path, ("stages.guided.steps=4", f"out={tmp_path / 'else'}"))
    made = plan_seed(actual, 3).recipe
    assert made.out == tmp_path / "else" / "s"
    assert [made.stages[name].steps for name in ("guided", "guided_b")] == [4, 4]  # type: ignore[union-attr]
    with pytest.raises(TagprError, match=r"seeds=\.\.\. stands in the sweep's file .*--seeds"):
        load_sweep(path, ("seeds=[1,1]",))


def test_the_table_fits_a_terminal() -> None:
    rows = compare_arms(SCORES, USERS, TASKS)
    facts = {"name": "s", "metric": "score", "questions": 3, "users": 2, "seeds": [1, 2], "arms": rows, "also": {}}
    console = Console(width=120, file=io.StringIO())
    console.print(sweep_cli.summary(facts))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "none" in text and max(len(line) for line in text.splitlines()) <= 120
