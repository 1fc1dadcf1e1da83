"""Escape sequences in data reach no terminal, whichever way a command prints them."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from tagpr_rl.cli.arguments import say
from tagpr_rl.cli.terminal import guard_rich, visible

EVIL = "\x1b]0;owned\x07\x1b[2K\x9b31mtext\x7f"
SHOWN = "\u241b]0;owned\u2407\u241b[2K\ufffd31mtext\u2421"


def test_pictures_by_hand() -> None:
    assert visible(EVIL) == SHOWN and visible("two\nlines\tand ü ✓") == "two\nlines\tand ü ✓"


def test_rich_keeps_its_own_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    guard_rich()
    guard_rich()  # twice is once
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=200, color_system="truecolor")
    table = Table("head")
    table.add_row(EVIL)
    table.add_row(Text(EVIL, style="red"))
    console.print(table, EVIL, f"[bold]{EVIL}[/bold]".replace("[2K", ""), soft_wrap=True)
    with Progress(console=console) as progress:
        progress.add_task(EVIL)
    text = file.getvalue()
    assert "\x1b]0" not in text and "\x9b" not in text and text.count("\u241b]0;owned") == 4
    assert "\x1b[1m" in text and "\x1b[?25l" in text  # bold, and the hidden cursor of a progress bar
    say(EVIL)
    assert capsys.readouterr().out == SHOWN + "\n"


def test_rich_alone_passes_sequences_on() -> None:
    """If this fails, rich guards terminals itself and `guard_rich` can go."""
    code = f"from rich.console import Console; Console(force_terminal=True).print({EVIL!r}, highlight=False)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert b"\x1b]0;" in done.stdout


def test_a_walk_over_hostile_files_on_a_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "LaMP_4"
    folder.mkdir()
    for split in ("train", "dev"):
        ids = [f"{split}{user}{n}" for user in range(4) for n in range(3)]
        profile = [{"id": f"p{k}", "title": f"title {k} {EVIL}", "text": f"text {k} {EVIL}"} for k in range(3)]
        questions = [
            {"id": i, "user_id": i[:-1] + EVIL, "profile": profile,
             "input": f"Generate a headline for the following article: {i} {EVIL}"}
            for i in ids
        ]  # fmt: skip
        golds = {"task": "LaMP_4", "golds": [{"id": i, "output": f"gold {EVIL}"} for i in ids]}
        (folder / f"{split}_questions.json").write_text(json.dumps(questions))
        (folder / f"{split}_outputs.json").write_text(json.dumps(golds))
    command = [sys.executable, "-m", "tagpr_rl", "walk", "demo", f"data.lamp_dir={tmp_path}", "data.tasks=[LaMP_4]"]
    code, text = on_a_terminal(command)
    assert code == 0 and "\u241b]0;owned" in text and "\x1b[" in text  # colours are there
    assert "\x1b]0" not in text and "\x9b" not in text and "\x1b[2K" not in text


def on_a_terminal(command: list[str]) -> tuple[int, str]:
    """(exit code, output) of a command whose output is a terminal."""
    main, side = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdout=side, stderr=side, stdin=side, env=environment)
    os.close(side)
    pieces = []
    try:
        while piece := os.read(main, 1 << 16):
            pieces.append(piece)
    except OSError:  # the last process closed its end
        pass
    os.close(main)
    return process.wait(timeout=120), b"".join(pieces).decode("utf-8", "replace")
