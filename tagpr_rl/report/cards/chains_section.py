"""The chains section of the page: why chains were not kept, how far two labellings agree, which tags they use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tagpr_rl.report.page.read import Row, number

REASONS: Mapping[str, str] = {
    "NOT_ASKED": "the budget was spent before the teacher was asked",
    "TEACHER_FAILED": "the teacher did not answer, after every retry",
    "TEACHER_REFUSED": "the teacher's endpoint rejects the request",
    "TEACHER_EMPTY": "an empty answer",
    "TEACHER_CUT": "stopped by the token limit",
    "NO_ANSWER": "no thought, or no answer line",
    "TOO_FEW_STEPS": "fewer steps than the recipe asks for",
    "REASSEMBLY": "the steps joined are not the thought, byte by byte",
    "NOT_LABELLED": "the budget was spent before the labeller was asked",
    "LABELLER_FAILED": "the labeller gave no whole answer",
    "BAD_LABELS": "not JSON, an index missing or twice, or a tag that is not in the schema",
    "LABELS_DISAGREE": "two labellings differ",
    "UNPARSABLE": "the response does not parse back to itself",
    "LOW_TAG_SCORE": "the tags break the schema's constraints",
    "NO_GOLD": "the question has no gold answer to judge by",
    "WRONG_ANSWER": "the answer is wrong",
    "NOT_BETTER": "no better than the same teacher without the profile",
    "NO_BASELINE": "the answer without the profile did not come",
    "NO_EVIDENCE": "the chain does not use this user's profile",
    "DUPLICATE": "the same response to the same question again",
    "NEAR_DUPLICATE": "nearly the thought of an earlier chain with the same answer",
    "NOT_BALANCED": "its task, user or tag sequence had its share",
}


def chains_view(report: Row) -> dict[str, Any] | None:
    """What chains.html.j2 draws; None without chains.json. Keys that an older file lacks are left out."""
    chains = report["chains"]
    if not chains:
        return None
    by_tag = (chains.get("agreement") or {}).get("by_tag") or {}
    coverage = chains.get("coverage") or {}
    return {
        "asked": chains.get("asked"),
        "kept": chains.get("kept"),
        "kept_wrong": chains.get("kept_wrong"),
        "reasons": [
            {"reason": reason, "n": n, "meaning": REASONS.get(reason, "")}
            for reason, n in (chains.get("rejected") or {}).items()
        ],
        "kappa": number(chains.get("kappa")),
        "deterministic": bool((chains.get("labeller") or {}).get("deterministic")),
        "steps": list((chains.get("steps_per_chain") or {}).items()),
        "pairs": list((chains.get("pairs") or {}).items()),
        "sources": [{"role": role, **chains[role]} for role in ("teacher", "labeller") if chains.get(role)],
        "tags": [
            {
                "name": name,
                "steps": n,
                "coverage": number(coverage.get(name)),
                "percent": round(100 * (number(coverage.get(name)) or 0.0), 1),
                "kappa": number(by_tag.get(name)),
            }
            for name, n in (chains.get("tags") or {}).items()
        ],
        "evidence": chains.get("evidence") or None,
    }
