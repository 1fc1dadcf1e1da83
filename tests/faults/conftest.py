"""Outcomes of faults: each test that takes something away from a run adds a row to outcomes.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_runs import Record

OUTCOMES = Path(__file__).with_name("outcomes.json")


@pytest.fixture(scope="session")
def record() -> Iterator[Record]:
    """Takes (where, fault, what happens, seconds until it has happened); writes the table at the end."""
    rows: dict[str, dict[str, dict[str, object]]] = json.loads(OUTCOMES.read_text()) if OUTCOMES.exists() else {}

    def add(where: str, fault: str, outcome: str, seconds: float) -> None:
        rows.setdefault(where, {})[fault] = {"outcome": outcome, "seconds": round(seconds, 1)}

    yield add
    OUTCOMES.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
