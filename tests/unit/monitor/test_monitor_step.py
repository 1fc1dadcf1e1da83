"""A step's figures by hand: components by group, task and tag, correlations, phases, sums, sample tables."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpr_rl.monitor.phases import ScoringTimes, phase_metrics, scoring_wait
from tagpr_rl.monitor.samples import columns, kept, shown, table_row
from tagpr_rl.monitor.step import RewardMismatch, check_sums, component_metrics, tag_metrics, task_correlation
from tagpr_rl.reward.components import component_names, short_form
from tagpr_rl.reward.response import ResponseParts, read_response, response_parts
from tagpr_rl.tags.constraints import tag_parts, tag_score
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import Step, TaggedTrace

TERMS = short_form(alpha=0.2, beta=0.1, gamma=0.5)
NAMES = component_names(TERMS)


def row(
    total: float, task: float = 0.0, prmu: float = 0.0, status: str = "OK", scored: str = "scored", tag: float = 0.5
) -> dict[str, Any]:
    return {
        "total": total, "task": task, "format": float(status == "OK"), "tag": tag, "prmu": prmu, "repetition": -0.2,
        "parse_status": status, "prmu_status": scored,
    }  # fmt: skip


def test_components_that_do_not_vary_within_groups() -> None:
    rows = [
        row(1.0, task=1.0, prmu=0.8),
        row(0.0, task=0.0, prmu=0.8),
        row(0.5, task=0.5, prmu=0.1),
        row(0.5, task=0.5, prmu=0.3),
        row(0.7, task=0.5, scored="masked"),
        row(0.7, task=0.5, prmu=0.2),
    ]
    actual = component_metrics(rows, ["LaMP_2"] * 4 + ["LaMP_3"] * 2, ["a", "a", "b", "b", "c", "c"], NAMES)
    assert actual["reward/task/zero_variance"] == pytest.approx(2 / 3)  # b and c
    assert actual["reward/prmu/zero_variance"] == pytest.approx(2 / 3)  # a; in c one score is left, which cannot vary
    assert actual["reward/total/zero_variance"] == actual["groups/zero_variance_fraction"] == pytest.approx(2 / 3)
    assert actual["reward/tag/zero_variance"] == 1.0
    assert actual["task/LaMP_2/responses"] == 4 and actual["task/LaMP_2/mean"] == 0.5
    assert actual["task/LaMP_2/prmu"] == 0.5 and actual["task/LaMP_2/total"] == 0.5
    assert actual["task/LaMP_3/prmu"] == 0.2 and actual["task/LaMP_3/total"] == 0.7  # the masked one has neither
    assert actual["task/LaMP_3/malformed"] == 0.0


def test_prmu_against_task_overall_and_within_groups() -> None:
    """Groups a and b: PRMU follows the task between them, and goes against it within each."""
    rows = [
        row(0, task=0.0, prmu=0.3),
        row(0, task=0.2, prmu=0.1),
        row(0, task=0.8, prmu=0.9),
        row(0, task=1.0, prmu=0.7),
        row(0, task=1.0, scored="masked"),
    ]
    actual = task_correlation(rows, ["a", "a", "b", "b", "b"])
    # deviations: task -.5 -.3 .3 .5, PRMU -.2 -.4 .4 .2 -> products .1+.12+.12+.1 = .44; squares .68 and .4
    assert actual["prmu/task_correlation"] == pytest.approx(0.44 / (0.68 * 0.4) ** 0.5)
    assert actual["prmu/task_correlation_within"] == pytest.approx(-1.0)
    off = [row(0, task=1.0, scored="off"), row(0, scored="off")]
    assert task_correlation(off, ["a", "a"]) == {}
    assert task_correlation([row(0, task=1.0, prmu=0.1), row(0, task=1.0, prmu=0.2)], ["a", "a"]) == {}


def test_a_reward_that_is_not_its_components_sum_is_an_error_with_the_record() -> None:
    # 1 * 1 + .2 * .5 + .1 * .4 + .5 * -.2 = 1.04
    good = row(1.04, task=1.0, prmu=0.4)
    check_sums([good], [1.04 + 9e-7], TERMS, ["r1"])
    with pytest.raises(RewardMismatch, match=r"step 3, record 17: .* 1\.04, the reward 1\.04000\d+ .*prmu=0\.4"):
        check_sums([good], [1.04 + 3e-6], TERMS, ["step 3, record 17"])
    with pytest.raises(RewardMismatch, match=r"r1: .*total=1\.05"):
        check_sums([row(1.05, task=1.0, prmu=0.4)], [1.04], TERMS, ["r1"])
    with pytest.raises(RewardMismatch):
        check_sums([good], [float("nan")], TERMS, ["r1"])
    large = row(20.04, task=20.0, prmu=0.4)
    check_sums([large], [20.04 + 1e-6], TERMS, ["r1"])  # single precision


class TestTags:
    schema = default_schema()

    def seen(self, *steps: tuple[str, str]) -> ResponseParts:
        inner = "".join(f"<{tag}>{text}</{tag}>" for tag, text in steps)
        return response_parts(read_response(f"<think>{inner}</think> blue", self.schema))

    def test_use_validity_and_words(self) -> None:
        full = self.seen(
            ("examine_examples", "she likes blue"), ("infer_preference", "blue"),
            ("apply_preference", "pick the blue one"), ("conclude", "!!"),
        )  # fmt: skip
        late = self.seen(("conclude", "so it is blue then"), ("examine_examples", "she likes green"))
        assert (full.coverage, full.sound) == (1.0, 0.75)  # "!!" has no word
        malformed = response_parts(read_response("<think><conclude>x</think> y", self.schema))
        assert malformed == ResponseParts(0.0, ()) and malformed.sound == 0.0
        actual = tag_metrics([full, late, malformed, malformed], self.schema.names)
        assert actual["tag/conclude/use"] == 0.5 and actual["tag/infer_preference/use"] == 0.25
        assert actual["tag/conclude/valid"] == 0.5  # one wordless, one sound
        assert actual["tag/conclude/words"] == 3.0  # "!!" and five words
        assert actual["tag/examine_examples/valid"] == 0.5  # once after a tag that it must come before
        assert actual["tag/weigh_conflict/use"] == 0.0 and "tag/weigh_conflict/valid" not in actual

    @given(
        st.lists(
            st.tuples(st.sampled_from(default_schema().names), st.sampled_from(["a b", "a c", "d", "!", "e f g"])),
            max_size=8,
        )
    )
    def test_the_score_is_its_parts_product(self, steps: list[tuple[str, str]]) -> None:
        trace = TaggedTrace(tuple(Step(*step) for step in steps), "x")
        parts = tag_parts(trace, self.schema)
        assert tag_score(trace, self.schema) == pytest.approx(parts.coverage * parts.sound)
        assert len(parts.faults) == len(steps)


class TestPhases:
    def test_phases_and_the_driver_s_own_time_by_hand(self) -> None:
        timing = {"step": 20.0, "gen": 10.0, "adv": 0.5, "update_actor": 7.0, "update_weights": 1.0, "other": 3.0}
        actual = phase_metrics(timing, scoring_s=2.0)
        assert actual == pytest.approx(
            {
                "phase/generation_s": 8.0, "phase/generation_share": 0.4, "phase/reward_s": 2.0,
                "phase/reward_share": 0.1, "phase/advantage_s": 0.5, "phase/advantage_share": 0.025,
                "phase/update_actor_s": 7.0, "phase/update_actor_share": 0.35, "phase/weight_sync_s": 1.0,
                "phase/weight_sync_share": 0.05, "driver/only_s": 1.5, "driver/share": 0.075,
            }
        )  # fmt: skip

    def test_no_wait_for_scores_is_a_wait_of_0(self) -> None:
        assert phase_metrics({"step": 2.0, "gen": 1.0})["phase/reward_s"] == 0.0

    def test_without_a_step_there_is_nothing_to_share(self) -> None:
        assert phase_metrics({}) == {} == phase_metrics({"gen": 1.0})

    def test_the_wait_for_scores_counts_only_while_the_trainer_waited(self) -> None:
        requested = [ScoringTimes(4.0, 4.5, 5.0), ScoringTimes(6.0, 8.0, 9.0)]
        assert scoring_wait(requested, [(0.0, 20.0)]) == 3.0  # from the last end of a rollout, 6, to the last score, 9
        assert scoring_wait(requested, [(0.0, 7.0), (8.5, 20.0)]) == 1.5
        assert scoring_wait(requested, [(10.0, 20.0)]) == 0.0 == scoring_wait([], [(0.0, 1.0)])

    @given(st.dictionaries(st.sampled_from(["gen", "adv", "ref", "update_actor"]), st.floats(0, 5)), st.floats(0, 9))
    def test_phases_and_driver_make_the_whole_step(self, timing: dict[str, float], scoring: float) -> None:
        actual = phase_metrics({**timing, "step": 25.0}, scoring)
        seconds = sum(value for key, value in actual.items() if key.endswith("_s"))
        assert seconds == pytest.approx(25.0)
        assert all(value >= 0 for value in actual.values())


def line(group: str, sample: int, total: float, status: str = "OK") -> dict[str, Any]:
    return {
        "group": group, "sample": sample, "reward_total": total, "reward_task": 0.5, "reward_format": 1.0,
        "reward_tag": 1.0, "reward_prmu": 0.4, "reward_repetition": -0.1, "parse_status": status,
        "tag_parts": {"coverage": 1.0, "sound": 0.5},
    }  # fmt: skip


class TestSamples:
    @property
    def lines(self) -> list[dict[str, Any]]:
        return [line(group, n, ord(group) + n / 10) for group in "abc" for n in range(4)]

    def test_whole_groups_are_kept(self) -> None:
        assert kept(self.lines, None, 1) == self.lines
        some = kept(self.lines, 8, 1)
        assert len(some) == 8 and all(sum(x["group"] == g for x in some) in (0, 4) for g in "abc")
        assert kept(self.lines, 8, 1) == some  # the same for the same step
        assert len(kept(self.lines, 1, 1)) == 4  # at least one group
        assert len({tuple(x["group"] for x in kept(self.lines, 4, seed)) for seed in range(20)}) == 3

    def test_best_worst_malformed_and_random_none_twice(self) -> None:
        lines = [*self.lines, line("d", 0, -5.0, "NESTED"), line("d", 1, -4.0, "NESTED"), line("d", 2, -3.0, "NESTED")]
        actual = shown(lines, 2, 7)
        assert [kind for kind, _ in actual] == ["best"] * 2 + ["worst"] * 2 + ["malformed"] * 2 + ["random"] * 2
        assert [(x["group"], x["sample"]) for _, x in actual[:2]] == [("c", 3), ("c", 2)]
        assert all(x["parse_status"] == "NESTED" for _, x in actual[4:6])
        assert len({id(x) for _, x in actual}) == 8
        assert [kind for kind, _ in shown(self.lines[:1], 2, 7)] == ["best"]

    def test_a_table_row_says_what_each_component_added(self) -> None:
        values = dict(zip(columns(NAMES), table_row("best", line("a", 0, 0.69), TERMS), strict=True))
        assert values["kind"] == "best" and values["reward_total"] == 0.69
        assert values["weighted"] == "task_format +0.5000 tag +0.2000 prmu_format +0.0400 repetition -0.0500"
        assert values["tag_parts"] == "coverage 1.000 sound 0.500"
