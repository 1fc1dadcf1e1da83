"""Recipe keys of earlier releases that no longer exist, and what to do instead. Runs made with them stay readable."""

from __future__ import annotations

RETIRED: dict[str, str] = {}
"""Dotted key (`*` stands for any stage's name) -> the remedy, as the end of an error message."""
