"""The command `tagpr`: the table of commands, and what every mistake of the user looks like.

`tagpr --help` is printed from the table alone. A command's file is imported when the command is chosen, so these files
import at their top whatever they need.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from tagpr_rl import __version__
from tagpr_rl.cli.arguments import Command, warn
from tagpr_rl.cli.terminal import guard_rich
from tagpr_rl.run.deadline import request
from tagpr_rl.types import TagprError, did_you_mean

COMMANDS: dict[str, dict[str, str]] = {
    "Run": {
        "run": "make every stage of a recipe that is not done yet; print the results",
        "resume": "go on with an interrupted run, in the middle of a stage if it must",
        "status": "what is done, what runs, how long it takes, what to type next",
        "doctor": "whether this machine is fit for runs: versions, memory, ports, what earlier runs left",
        "plan": "stages, batches, memory and hours of a recipe, and whether it fits; runs nothing",
    },
    "Look": {
        "report": "write a run's report (HTML and JSON) again",
        "watch": "the report in a browser or a terminal while the run grows",
        "compare": "runs side by side: recipes, scores, curves, responses",
        "walk": "one record through all nine hops, from the file to the reward",
        "chat": "ask a finished stage's model as one user, thought and answer",
        "replay": "recompute rewards and advantages from saved responses, and compare",
    },
    "Data": {
        "data": "check, download or rank LaMP's official files",
        "chains": "make, inspect and publish tagged chains; discover tags",
        "eval": "score predictions files in LaMP's format, of this or any other system",
    },
    "Study": {
        "sweep": "arms x seeds of one recipe, compared on the same questions",
        "study": "measure a finished run: its reward model, its faithfulness",
        "export": "write a finished stage's model as a Hugging Face folder",
        "serve": "score responses over HTTP with a finished run's reward model",
    },
    "Cluster": {
        "cluster": "render files for a cluster, submit a run to Ray, look after its job",
    },
}
"""Panel of `tagpr --help` -> command -> what it does. The file cli/<command>.py holds it: `command`, a function, or
`commands`, a typer.Typer of several."""
FILES = {"resume": "run", "report": "compare", "export": "study"}
"""Command -> the file that holds it beside its own command, as a function of the command's name."""

ALIASES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("render",): ("cluster", "render"),
    ("submit",): ("cluster", "submit"),
    ("jobs",): ("cluster", "jobs"),
    ("prmu", "eval"): ("study", "prmu"),
    ("faithful",): ("study", "faithful"),
    ("wandb-view",): ("study", "wandb-view"),
}
"""Names of the release before -> today's. They work, and no help lists them."""


class CommandTable(TyperGroup):
    """The commands of the table; a command's file is imported when the command is chosen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for panel, rows in COMMANDS.items():
            for name, summary in rows.items():
                self.commands[name] = TyperCommand(name, short_help=summary, rich_help_panel=panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """(name, command, rest of the line); names of the release before are replaced first."""
        for old, new in ALIASES.items():
            if tuple(args[: len(old)]) == old:
                args = [*new, *args[len(old) :]]
                break
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name is not None else listed, rest


def load_command(name: str) -> Any:
    """The command of the table, ready to parse its arguments."""
    module = importlib.import_module(f"tagpr_rl.cli.{FILES.get(name, name)}")
    if name not in FILES and hasattr(module, "commands"):
        return get_command(module.commands)
    single = typer.Typer(add_completion=False)
    single.command(name, cls=Command)(getattr(module, name) if name in FILES else module.command)
    return get_command(single)


app = typer.Typer(cls=CommandTable, no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tagpr {__version__}")
        raise typer.Exit


@app.callback()
def tagpr(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train and measure language models that reason about one user with tagged thoughts.

    RECIPE is a YAML file or the name of a shipped recipe (demo, smoke, ...). RUN is a run's folder, its URL, or a
    recipe. Keys of a recipe can be set anywhere on the line: key=value.

    Start with: tagpr walk demo, then tagpr run demo
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own).

    Returns the exit code: 0, 1 (the command ran and its answer is no), 2 (a mistake, explained), 130 (interrupted).
    SIGTERM, which schedulers send, ends the process with 143 as Ctrl-C does with 130: what the command holds is closed.
    SIGUSR1 does so after a save (run/deadline.py).
    """
    terminated = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: _interrupt(number, terminated))
        signal.signal(signal.SIGUSR1, lambda number, _: _save(number, terminated))
    try:
        os.getcwd()
    except OSError as error:
        print(f"error: the working directory is gone ({error.strerror}); cd into a folder that exists", file=sys.stderr)
        return 2
    guard_rich()
    try:
        code = get_command(app).main(args=argv, prog_name="tagpr", standalone_mode=False)
    except typer.TyperException as error:
        return _wrong_line(error)
    except TagprError as error:
        warn(f"error: {error}")
        return 2
    except BrokenPipeError:  # `tagpr plan demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from tagpr_rl.cli.disk import disk_error

        message = disk_error(error, sys.argv[1:] if argv is None else argv)
        if message is None:
            raise
        warn(f"error: {message}")
        return 2
    if code == 130:
        code, word = (143, "terminated") if terminated.is_set() else (130, "interrupted")
        warn(f"{word}; the same command goes on where this one stopped")
    return int(code or 0)


def _interrupt(number: int, terminated: threading.Event) -> None:
    """Unwind as Ctrl-C does: Ray turns another exception of a signal's handler into the end of the process. A second
    signal kills."""
    signal.signal(number, signal.SIG_DFL)
    terminated.set()
    raise KeyboardInterrupt


def _save(number: int, terminated: threading.Event) -> None:
    """End after the step in progress and its save, in a stage that can; elsewhere at once."""
    terminated.set()
    if not request():
        _interrupt(number, terminated)


def _wrong_line(error: typer.TyperException) -> int:
    """Explain a mistake of the command line: what is wrong, the nearest right word, where the help is."""
    text = error.format_message().rstrip(".").replace("Value error, ", "")
    if text:  # empty: the help itself was printed
        value, *choices = re.findall(r"'([^']*)'", getattr(error, "message", ""))[:50] or [""]
        if "is not one of" in text and (hint := did_you_mean(value, choices)):
            text = f"{text}; {hint}"
        context = getattr(error, "ctx", None)
        if text.startswith("No such command") and "Did you mean" not in text:
            known = getattr(getattr(context, "command", None), "commands", {})
            text = f"{text}; the commands are {', '.join(known)}" if known else text
        where = f"\n`{context.command_path} --help` explains the command" if context is not None else ""
        warn(f"error: {text}{where}")
    return 2
