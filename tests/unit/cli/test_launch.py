"""The command line: exit codes, messages, --fresh, plan's arithmetic. No stage is run here."""

from __future__ import annotations

import errno
import io
import sqlite3
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tagpr_rl.cli import arguments, main
from tagpr_rl.config import Recipe, dump_recipe, load_recipe
from tagpr_rl.files import write_json
from tagpr_rl.plan import show as planning
from tagpr_rl.run.layout import RunDir
from tagpr_rl.types import TagprError

DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo.yaml"


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the stages: records each call."""
    calls: list[dict[str, Any]] = []
    module = types.ModuleType("tagpr_rl.stages.pipeline")

    def run_pipeline(recipe: Recipe, run: RunDir, *, until: str | None = None) -> None:
        calls.append({"recipe": recipe, "run": run, "until": until})

    module.run_pipeline = run_pipeline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tagpr_rl.stages.pipeline", module)
    return calls


def go(*arguments: str) -> int:
    return main([str(argument) for argument in arguments])


def test_run_hands_recipe_folder_and_until_on(tmp_path: Path, pipeline: list[dict[str, Any]]) -> None:
    assert go("run", str(DEMO), "name=a", "--until", "sft", f"out={tmp_path}", "data.limit=30") == 0
    (call,) = pipeline
    assert call["run"].root == tmp_path / "a"
    assert call["until"] == "sft"
    assert call["recipe"].data.limit == 30


def test_an_unknown_until_is_refused(tmp_path: Path, pipeline: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert go("run", str(DEMO), f"out={tmp_path}", "--until", "stf") == 2
    assert "--until stf: no such stage; did you mean 'sft'? (the stages are data, model" in capsys.readouterr().err
    assert pipeline == [] and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_fresh_deletes_a_run_and_refuses_any_other_folder(tmp_path: Path, pipeline: list[Any]) -> None:
    run = RunDir(tmp_path / "demo")
    write_json(run.resolved, {})
    (run.root / "010_data").mkdir()
    assert go("run", str(DEMO), f"out={tmp_path}", "--fresh") == 0
    assert list(run.root.iterdir()) == []

    (run.root / "thesis.txt").write_text("precious")
    assert go("run", str(DEMO), f"out={tmp_path}", "--fresh") == 2
    assert (run.root / "thesis.txt").read_text() == "precious"
    assert len(pipeline) == 1


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["run", "nowhere.yaml"], "recipe nowhere.yaml: no such file, and no shipped recipe has that name"),
        (["run", str(DEMO), "data.limitt=3"], "did you mean 'limit'?"),
        (["plan", str(DEMO), "stages.sft.stepz=3"], "did you mean 'steps'?"),
        (["status", "nowhere"], "nowhere is no run's folder: it does not exist"),
        (
            ["report", str(DEMO), "out=/nonexistent-runs"],
            "/nonexistent-runs/demo is no run's folder: it has no resolved.json",
        ),
    ],
)
def test_a_mistake_gives_one_message_and_exit_code_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and part in error and "Traceback" not in error


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go("report", str(tmp_path)) == 2
    assert "is no run's folder: it has no resolved.json" in capsys.readouterr().err
    (tmp_path / "resolved.json").write_text("{")
    assert go("status", str(tmp_path)) == 2
    assert "not valid JSON" in capsys.readouterr().err


def test_status_of_a_folder_reads_its_own_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "resolved.json", dump_recipe(load_recipe(DEMO, ("name=other",))))
    assert go("status", str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "guided" in out and "todo" in out
    assert go("status", str(tmp_path), "data.limit=3") == 2


def test_report_of_an_unfinished_run_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "resolved.json", dump_recipe(load_recipe(DEMO)))
    assert go("report", str(tmp_path)) == 0
    assert capsys.readouterr().out.rstrip().endswith(str(tmp_path / "report.html"))
    assert "not run" in (tmp_path / "report.json").read_text()


@pytest.mark.slow
def test_walk_prints_nine_hops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_folder = f"out={tmp_path}"  # in a checkout that holds a run of the demo, the walk would read that run's data
    assert go("walk", str(DEMO), "--record", "3", out_folder) == 0
    out = capsys.readouterr().out
    for hop in ("make_splits", "build_prompt", "to_row", "parse", "score", "group_advantages"):
        assert hop in out
    assert go("walk", str(DEMO), "--record", "-1") == 2


def test_an_output_folder_below_a_file_is_explained(
    tmp_path: Path, pipeline: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert go("run", str(DEMO), f"out={tmp_path}/file") == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/file" in error and "out=<folder>" in error
    assert pipeline == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "error, code, part",
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "no space is left"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, "cannot use /x/y: no permission"),
        (OSError(errno.EROFS, "Read-only", "/x"), 2, "read-only"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/proc/x"), 2, "cannot use /proc/x: it does not exist"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), 2, "it is a folder, and a file is needed"),
        (OSError(errno.ELOOP, "Loop", "/x"), 2, "in a circle"),
        (OSError(errno.EMFILE, "Too many open files"), 2, "ulimit -n"),
        (OSError(errno.EIO, "Input/output error"), 2, "the disk or the network"),
        (OSError(errno.ENODEV, "No such device", "/dev/x"), 2, "cannot use /dev/x: No such device"),
        (OSError("Write error: No space left on device"), 2, "no space is left"),
        (sqlite3.OperationalError("database or disk is full"), 2, "no space is left"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), 2, "no space is left"),
        (TagprError("record 7 has no gold"), 2, "error: record 7 has no gold"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_inside_a_stage(
    error: BaseException, code: int, part: str, tmp_path: Path, pipeline: list[Any],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["tagpr_rl.stages.pipeline"], "run_pipeline", fail)
    assert go("run", str(DEMO), f"out={tmp_path}") == code
    assert part in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback(
    tmp_path: Path, pipeline: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "a socket, no file")

    monkeypatch.setattr(sys.modules["tagpr_rl.stages.pipeline"], "run_pipeline", fail)
    with pytest.raises(PermissionError):
        go("run", str(DEMO), f"out={tmp_path}")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="ray")

    monkeypatch.setattr(arguments.importlib, "import_module", missing)
    with pytest.raises(TagprError, match="'ray' is not installed; `make install`"):
        arguments.full_install("tagpr_rl.stages.pipeline")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", str(DEMO), "--fresh", "fast"],
        ["run", str(DEMO), "--frseh"],
        ["walk"],
        [],
        ["render", str(DEMO)],
        ["render", str(DEMO), "--target", "nomad"],
        ["submit", str(DEMO)],
        ["jobs", "status", "raysubmit_x"],
        ["jobs", "status", "raysubmit_x", "--address", "http://127.0.0.1:1", "name=b"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    assert go(*arguments) == 2


def test_plan_counts_what_a_step_does() -> None:
    recipe = load_recipe(
        DEMO,
        (
            "data.prompt={max_tokens: 100, max_response_tokens: 20}",
            "stages.guided={kind: grpo, init: sft, prmu: prmu, steps: 5, prompts_per_step: 12, group_size: 4, "
            "mini_batches: 2, micro_batch_size: 3}",
            "stages.sft.steps=7",
            "stages.sft.batch_size=16",
        ),
    )
    guided = planning.batch_plan(recipe, recipe.stages["guided"])
    # 12 prompts x 4 = 48 responses; 2 updates of 24; 24 / 3 = 8 forward passes; 5 steps
    assert guided == planning.BatchPlan(
        updates=10, samples_per_step=48, mini_batch=24, micro_batches=8,
        generated_tokens=5 * 48 * 20, trained_tokens=5 * 48 * 120,
    )  # fmt: skip
    sft = planning.batch_plan(recipe, recipe.stages["sft"])
    assert sft == planning.BatchPlan(updates=7, samples_per_step=16, trained_tokens=7 * 16 * 120)
    assert planning.batch_plan(recipe, recipe.stages["data"]) is None


def test_plan_reports_batches_that_do_not_divide() -> None:
    recipe = load_recipe(DEMO, ("platform.devices_per_node=3", "platform.nodes=2"))
    plan = planning.batch_plan(recipe, recipe.stages["sft"])
    assert plan is not None and plan.problems == ("batch_size = 16 is not a multiple of devices = 6",)
    guided = planning.batch_plan(recipe, recipe.stages["guided"])
    assert guided is not None
    assert guided.problems == ("responses per update = 256 is not a multiple of devices * micro_batch_size = 192",)
    assert guided.micro_batches == 2


def test_plan_prints_every_stage_and_the_overrides(tmp_path: Path) -> None:
    recipe = load_recipe(DEMO, (f"out={tmp_path}",))
    console = Console(record=True, width=100, file=io.StringIO())
    planning.print_plan(recipe, RunDir(tmp_path / "demo"), console, lambda r, d, name: [f"key.of={name}[x]"])
    text = console.export_text()
    for name in recipe.stages:
        assert f"key.of={name}[x]" in text
    assert "32 x 8 = 256" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_plan_and_dry_run_print_verl_keys_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go("run", str(DEMO), f"out={tmp_path}", "--dry-run") == 0
    assert "data.train_batch_size" not in (plan := capsys.readouterr().out)
    assert plan.splitlines()[-1].startswith("fits: batches divide; at most ")
    assert go("plan", str(DEMO), f"out={tmp_path}", "--verl") == 0
    plan = capsys.readouterr().out
    assert "data.train_batch_size=32" in plan
    assert f"'{tmp_path}/demo/060_sft/hf'" in plan  # where guided starts from
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_does_not_fit_is_not_started(
    tmp_path: Path, pipeline: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(DEMO), f"out={tmp_path}", "platform.devices_per_node=3"]
    for command in (["run"], ["render", "--target", "docker"], ["submit", "--address", "http://127.0.0.1:1"]):
        assert main([*command, *arguments]) == 2
        reported = capsys.readouterr().err
        assert "stages.base: batch_size = 16 is not a multiple of devices = 3" in reported
        assert "stages.guided: responses per update = 256" in reported
    assert not pipeline and not list(tmp_path.iterdir())
