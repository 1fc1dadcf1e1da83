"""bench/fuzz_config.py in small: mutated recipes, sweeps and schemas are read, or refused with one message."""

from __future__ import annotations

from pathlib import Path

from test_bench import load

FUZZ = load(Path(__file__).resolve().parents[3], "fuzz_config")


def test_mutated_files_are_read_or_refused() -> None:
    counts = FUZZ.fuzz(400, seed=7)
    assert sum(counts.values()) == 400
    assert {name for name, count in counts.items() if count} == {
        f"{kind} {result}" for kind in ("recipe", "sweep", "schema") for result in ("ok", "refused")
    }
