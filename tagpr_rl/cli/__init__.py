"""The command line: one file for each command or group of commands, and app.py with the table of all."""

from tagpr_rl.cli.app import main

__all__ = ["main"]
