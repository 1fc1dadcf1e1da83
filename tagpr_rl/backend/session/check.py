"""One row of `tagpr doctor`."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, MISTAKE = "ok", "warning", "mistake"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the doctor's table."""

    name: str
    state: str
    """OK, WARNING or MISTAKE."""
    seen: str
    remedy: str = ""
