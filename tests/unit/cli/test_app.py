"""The command `tagpr` itself: its help, what it loads, hints, names of the release before, and a new command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tagpr_rl
import tagpr_rl.cli
from tagpr_rl.cli import app, main
from tagpr_rl.config import load_recipe
from tagpr_rl.run.open import open_run, recipe_path, shipped_recipes
from tagpr_rl.types import TagprError

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("pydantic", "yaml", "numpy", "jinja2", "pyarrow", "pandas", "rapidfuzz", "fsspec", "torch", "ray", "verl")


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of every command of the table and of those below it."""
    for rows in app.COMMANDS.values():
        for name in rows:
            command = app.load_command(name)
            below = getattr(command, "commands", {})
            yield from (((name, inner), below[inner]) for inner in below)
            if not below:
                yield (name,), command


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tagpr_rl.cli import main\nassert main(['--help']) == 0\n"
        f"print('loaded', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded"


def test_help_lists_every_command_in_its_panel(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    help_text = capsys.readouterr().out
    for panel, rows in app.COMMANDS.items():
        assert panel in help_text and all(f" {name} " in help_text for name in rows)
    assert " wandb-view " not in help_text  # a name of the release before


@pytest.mark.parametrize("words, command", [pytest.param(*pair, id=" ".join(pair[0])) for pair in commands()])
def test_every_command_has_a_description_and_one_example(words: tuple[str, ...], command: Any) -> None:
    assert command.help.count("Example: ") == 1
    example = command.help.split("Example: ")[1].split()
    assert example[: 1 + len(words)] == ["tagpr", *words]
    assert len(command.help.split("Example: ")[0]) > 30
    assert main([*words, "--help"]) == 0


def test_the_table_and_the_files_agree() -> None:
    shared = {"__init__", "app", "arguments", "disk", "terminal"}
    files = {path.stem for path in (ROOT / "tagpr_rl" / "cli").iterdir()} - shared
    assert {app.FILES.get(name, name) for rows in app.COMMANDS.values() for name in rows} == files - {"__pycache__"}


def test_a_new_command_is_a_file_and_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "greet.py").write_text(
        "def command(name: str, loud: bool = False) -> None:\n"
        '    """Greet NAME."""\n'
        "    print(f'hello {name.upper() if loud else name}')\n"
    )
    monkeypatch.setattr(tagpr_rl.cli, "__path__", [*tagpr_rl.cli.__path__, str(tmp_path)])
    monkeypatch.setitem(app.COMMANDS, "Look", {**app.COMMANDS["Look"], "greet": "say hello"})
    assert main(["greet", "ada", "--loud"]) == 0
    assert capsys.readouterr().out == "hello ADA\n"
    assert main(["--help"]) == 0
    assert "say hello" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, hint",
    [
        ("stats x", "Did you mean 'status'?"),
        ("cluster rendr demo", "Did you mean 'render'?"),
        ("run demo --frseh", "Possible options: --fresh"),
        ("cluster render demo --target slrum", "did you mean 'slurm'?"),
        ("run demmo", "did you mean 'demo'?"),
        ("report demmo", "did you mean 'demo'?"),
        ("run demo --until stf", "did you mean 'sft'?"),
        ("run demo data.retreival.k=3", "data.retreival: unknown key; did you mean 'retrieval'?"),
        ("run demo stages.guided.leraning_rate=1", "stages.guided.leraning_rate: unknown key"),
        ("sweep sweeps/ablation", "did you mean 'sweeps/ablations'?"),
    ],
)
def test_a_wrong_word_gets_the_nearest_right_one(line: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and hint in message and "Traceback" not in message


def test_names_of_the_release_before_still_work(capsys: pytest.CaptureFixture[str]) -> None:
    for old, new in app.ALIASES.items():
        assert main([*old, "--help"]) == 0
        assert f"Usage: tagpr {' '.join(new)} " in capsys.readouterr().out


def test_options_with_several_values_take_them_after_one_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (["--tasks", "LaMP_2", "LaMP_9"], ["--tasks", "LaMP_2", "--tasks", "LaMP_9"]):
        assert main(["data", "check", str(tmp_path), *line]) == 2
        assert "LaMP_9" in capsys.readouterr().err


def test_version_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tagpr {tagpr_rl.__version__}\n"
    words = {"_TAGPR_COMPLETE": "complete_bash", "COMP_WORDS": "tagpr run de", "COMP_CWORD": "2"}
    result = subprocess.run(
        [sys.executable, "-m", "tagpr_rl"], cwd=ROOT, env={**os.environ, **words}, capture_output=True, text=True
    )
    assert "demo" in result.stdout.split()


def test_a_python_without_the_packages_gets_one_line() -> None:
    result = subprocess.run(
        [sys.executable, "-S", "-E", str(ROOT / "launch.py"), "--help"], capture_output=True, text=True, cwd="/"
    )
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "is not installed; `make install`" in result.stderr


def test_a_recipe_is_a_path_or_a_shipped_name() -> None:
    assert recipe_path("demo") == shipped_recipes()["demo"]
    assert recipe_path(ROOT / "recipes" / "demo.yaml") == ROOT / "recipes" / "demo.yaml"
    assert load_recipe(recipe_path("smoke")).name == "smoke"
    with pytest.raises(TagprError, match="no such file, and no shipped recipe has that name"):
        recipe_path("nothing/like/it")


def test_a_recipe_that_was_not_run_is_no_run(tmp_path: Path) -> None:
    assert open_run("demo", [f"out={tmp_path}"], started=False).folder.root == tmp_path / "demo"
    with pytest.raises(TagprError, match=r"demo is no run's folder: it has no resolved\.json"):
        open_run("demo", [f"out={tmp_path}"])


def test_the_names_of_a_notebook_are_the_modules_own() -> None:
    from tagpr_rl.eval.lamp_eval import evaluate
    from tagpr_rl.tags.grammar import parse

    assert tagpr_rl.parse is parse and tagpr_rl.evaluate is evaluate
    assert set(tagpr_rl.__all__) <= set(dir(tagpr_rl))
    assert all(getattr(tagpr_rl, name).__doc__ for name in tagpr_rl.__all__ if name != "Scorer")
    with pytest.raises(AttributeError, match="no attribute 'prase'"):
        _ = tagpr_rl.prase
