"""build_chains and build_pairs: every kept chain is valid, every rejection is counted, pairs show a preference."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tagpr_rl.chains.build import build_chains
from tagpr_rl.chains.client.chat import Reply, ReplyStatus
from tagpr_rl.chains.keep import AnswerRules, KeepRules, Rejection, judge_answer, world_keep_rules
from tagpr_rl.chains.labellers.label import ScriptedLabeller, write_labels
from tagpr_rl.chains.pairs import build_pairs
from tagpr_rl.chains.teachers.scripted import ScriptedTeacher
from tagpr_rl.data.world.generate import WorldConfig, answers, make_world
from tagpr_rl.data.world.words import DIVISIVE
from tagpr_rl.prmu.training.preferences import check_pair
from tagpr_rl.prompts.prompt import build_prompt
from tagpr_rl.prompts.retrieve import rank
from tagpr_rl.prompts.rows import profile_texts
from tagpr_rl.reward.task import task_reward
from tagpr_rl.tags.constraints import tag_score
from tagpr_rl.tags.grammar import parse
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, ParseStatus, Prompt, TagprError

SCHEMA = default_schema()
WORLD = make_world(WorldConfig(seed=7, train_users=40, dev_users=1, time_users=0))
RECORDS = WORLD.records("train")


def make_prompt(record: LampRecord) -> Prompt:
    def count(messages):
        return sum(len(m["content"].split()) for m in messages)

    return build_prompt(
        record, rank(record, 4), style="reasoning", schema=SCHEMA, max_tokens=10_000, count_tokens=count
    )


PROMPTS = [make_prompt(record) for record in RECORDS]


def build(rules=None, *, error_rate=0.0, samples=1, labeller=None, teacher=None, records=RECORDS, prompts=PROMPTS):
    return build_chains(
        records,
        prompts,
        teacher or ScriptedTeacher(error_rate=error_rate, seed=1),
        labeller or ScriptedLabeller(),
        SCHEMA,
        rules or world_keep_rules(),
        samples=samples,
        seed=0,
    )


def test_every_scripted_chain_is_valid_and_the_kept_ones_are_right():
    chains = build()
    golds = {r.id: r for r in RECORDS}
    assert len(chains.rows) + len(chains.rejected) == chains.counts["asked"] == 320
    for row in chains.rows + chains.wrong:
        parsed = parse(row.response, SCHEMA)
        assert parsed.status is ParseStatus.OK, parsed.reason
        assert tag_score(parsed.trace, SCHEMA) == 1.0
        assert parsed.trace.answer == row.answer
        assert 4 <= len(parsed.trace.steps) <= 5
    assert all(task_reward(row.task, row.answer, golds[row.record_id].gold) == 1.0 for row in chains.rows)
    # Without errors the only wrong ones are those that the shown items cannot decide.
    for row in chains.wrong:
        shown = [item for item in golds[row.record_id].profile if item.id in row.item_ids]
        assert answers(golds[row.record_id], shown)[golds[row.record_id].gold] < 0.6
    undecided = sum(r.input.split()[-1] in DIVISIVE for r in RECORDS)
    assert undecided > 40  # scores of divisive things are drawn: most of the teacher's guesses miss
    assert chains.counts["kept"] > 320 - undecided


def test_tags_follow_the_content():
    first = {row.task: parse(row.response, SCHEMA).trace for row in reversed(build().rows)}
    for trace in first.values():
        tags = [step.tag for step in trace.steps]
        assert {"understand_task", "examine_examples", "infer_preference"} <= set(tags)
        assert tags.index("examine_examples") < tags.index("infer_preference")
        assert tags[-1] == "apply_preference"
    every = Counter(s.tag for row in build().rows for s in parse(row.response, SCHEMA).trace.steps)
    assert every["weigh_conflict"] > 0


def test_wrong_chains_stay_out_unless_asked_for():
    clean = build(error_rate=0.3)
    assert clean.counts["kept_wrong"] == 0
    assert all(row.correct for row in clean.rows)
    assert clean.counts["WRONG_ANSWER"] == len(clean.wrong) > 60
    mixed = build(world_keep_rules(wrong_fraction=0.15), error_rate=0.3)
    wrong = [row for row in mixed.rows if not row.correct]
    assert len(wrong) == mixed.counts["kept_wrong"]
    assert len(wrong) / len(mixed.rows) == pytest.approx(0.15, abs=0.01)
    assert [row for row in mixed.rows if row.correct] == list(clean.rows)
    assert build(world_keep_rules(wrong_fraction=0.15), error_rate=0.3) == mixed


class Fixed(ScriptedTeacher):
    """A teacher that always gives one reply."""

    def __init__(self, reply: str | Reply) -> None:
        super().__init__()
        self.reply = reply if isinstance(reply, Reply) else Reply(reply)

    def generate(self, requests):
        return [self.reply for _ in requests]


class FixedLabels(ScriptedLabeller):
    """A labeller with one reply per pass."""

    def __init__(self, *replies: str | Reply) -> None:
        super().__init__()
        self.replies = [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]

    def label(self, chains, schema, pass_number=0):
        return [self.replies[pass_number] for _ in chains]


GOOD = write_labels(["examine_examples", "infer_preference", "apply_preference"])
OTHER = write_labels(["examine_examples", "identify_patterns", "apply_preference"])
RECORD = next(r for r in RECORDS if r.task == "LaMP_3")
NEAR = AnswerRules(rating_tolerance=1)
DISAGREE = Rejection.LABELS_DISAGREE
STEPS = "he gave 4\nhe likes it\nso high\n"


@pytest.mark.parametrize(
    ("text", "labels", "rules", "reason"),
    [
        (Reply("x", ReplyStatus.BUDGET), (), KeepRules(), Rejection.NOT_ASKED),
        (Reply("", ReplyStatus.FAILED), (), KeepRules(), Rejection.TEACHER_FAILED),
        (Reply("", ReplyStatus.REFUSED), (), KeepRules(), Rejection.TEACHER_REFUSED),
        (Reply("", ReplyStatus.EMPTY), (), KeepRules(), Rejection.TEACHER_EMPTY),
        (Reply("  \n"), (), KeepRules(), Rejection.TEACHER_EMPTY),
        (Reply(STEPS + "Answer: 4", ReplyStatus.LENGTH), (), KeepRules(), Rejection.TEACHER_CUT),
        ("no answer", (), KeepRules(), Rejection.NO_ANSWER),
        ("he gave \ud800 4\nhe likes it\nso high\nAnswer: 4", (), KeepRules(), Rejection.REASSEMBLY),
        (STEPS + "Answer: \udfff4", (), KeepRules(), Rejection.REASSEMBLY),
        (STEPS + "Answer: 4", (Reply("", ReplyStatus.BUDGET),), KeepRules(), Rejection.NOT_LABELLED),
        (STEPS + "Answer: 4", (Reply("", ReplyStatus.FAILED),), KeepRules(), Rejection.LABELLER_FAILED),
        (STEPS + "Answer: 4", (Reply('{"steps": [', ReplyStatus.LENGTH),), KeepRules(), Rejection.LABELLER_FAILED),
        (STEPS + "Answer: 4", (GOOD, "[1]"), KeepRules(label_twice=True), Rejection.BAD_LABELS),
        ("short\nAnswer: 4", (), KeepRules(), Rejection.TOO_FEW_STEPS),
        (STEPS + "Answer: 4", ("{}",), KeepRules(), Rejection.BAD_LABELS),
        (STEPS + "Answer: 4", (GOOD, OTHER), KeepRules(label_twice=True), Rejection.LABELS_DISAGREE),
        (STEPS + "Answer: 4", (OTHER,), KeepRules(), Rejection.LOW_TAG_SCORE),
        (STEPS + "Answer: 4", (OTHER,), KeepRules(min_tag_score=0.5), Rejection.WRONG_ANSWER),
        (STEPS + "Answer: no number", (GOOD,), KeepRules(), Rejection.WRONG_ANSWER),
        (STEPS + "Answer: 4", (GOOD,), KeepRules(AnswerRules(rating_tolerance=1)), None),
        (STEPS + "Answer: 4", (GOOD,), KeepRules(tasks={"LaMP_3": AnswerRules(rating_tolerance=1)}), None),
        (STEPS + "Answer: 4", (GOOD, OTHER), KeepRules(NEAR, label_twice=True, min_agreement=0.6), None),
        (STEPS + "Answer: 4", (GOOD, OTHER), KeepRules(NEAR, label_twice=True, min_agreement=0.7), DISAGREE),
    ],
)
def test_each_rejection(text, labels, rules, reason):
    record = replace(RECORD, gold="5")
    chains = build(
        rules,
        teacher=Fixed(text),
        labeller=FixedLabels(*labels or (GOOD,)),
        records=[record],
        prompts=[make_prompt(record)],
    )
    assert [r.reason for r in chains.rejected] == ([reason] if reason else [])
    if reason:
        assert chains.counts[reason.value] == 1
        said = text.text if isinstance(text, Reply) else text
        assert chains.rejected[0].text == said.encode("utf-8", "replace").decode()
    assert sum(chains.counts[name] for name in ("kept", *Rejection)) == chains.counts["asked"] == 1


def test_missing_gold_and_repeats():
    record = replace(RECORD, gold=None)
    chains = build(
        teacher=Fixed(STEPS + "Answer: 4"), labeller=FixedLabels(GOOD), records=[record], prompts=[make_prompt(record)]
    )
    assert chains.counts["NO_GOLD"] == 1
    record = replace(RECORD, gold="4")
    chains = build(
        teacher=Fixed(STEPS + "Answer: 4"),
        labeller=FixedLabels(GOOD),
        records=[record],
        prompts=[make_prompt(record)],
        samples=3,
    )
    assert (chains.counts["kept"], chains.counts["DUPLICATE"]) == (1, 2)


def test_a_teacher_cannot_forge_markup():
    record = replace(RECORD, gold="4")
    text = "he gave </think> <conclude> 4\nhe likes it\nso high\nAnswer: 4"
    forged = text.replace("</think>", "<conclude>")
    chains = build(teacher=Fixed(forged), labeller=FixedLabels(GOOD), records=[record], prompts=[make_prompt(record)])
    trace = parse(chains.rows[0].response, SCHEMA).trace
    assert [step.tag for step in trace.steps] == ["examine_examples", "infer_preference", "apply_preference"]


def test_kappa_of_two_labellings():
    record = replace(RECORD, gold="4")
    labels = FixedLabels(GOOD, GOOD)
    chains = build(
        KeepRules(label_twice=True),
        teacher=Fixed(STEPS + "Answer: 4"),
        labeller=labels,
        records=[record],
        prompts=[make_prompt(record)],
    )
    assert chains.kappa == 1.0
    assert len(chains.rows) == 1


def test_generation_must_beat_the_answer_without_the_profile():
    record = LampRecord("q", "LaMP_5", "train", "u", "Generate ...: x", (), "graphs are fun to draw")
    rules = KeepRules(AnswerRules(generation_gain=0.2, generation_good=0.9))
    assert judge_answer(rules, record, "graphs are nice", None) is None  # R-1 = R-L = 2*2/(3+5) = .5, gain .5
    assert judge_answer(rules, record, "graphs are nice", "graphs are nice") is Rejection.NOT_BETTER
    assert judge_answer(rules, record, "graphs are fun to draw", "graphs are fun to draw") is None
    assert judge_answer(rules, record, "nothing here", None) is Rejection.NOT_BETTER
    assert judge_answer(rules, record, "graphs are nice", Rejection.NOT_ASKED) is Rejection.NO_BASELINE
    assert judge_answer(rules, record, "graphs are fun to draw", Rejection.NOT_ASKED) is None  # good without comparing
    assert judge_answer(world_keep_rules(), record, "graphs are nice", None) is Rejection.WRONG_ANSWER


def test_records_and_prompts_must_belong_together():
    with pytest.raises(TagprError, match="align them"):
        build(records=RECORDS[:2], prompts=PROMPTS[1:3])
    with pytest.raises(TagprError, match="one prompt per record"):
        build(records=RECORDS[:2], prompts=PROMPTS[:1])


def pairs(**options):
    chains = build(error_rate=0.3, samples=2)
    return build_pairs(
        chains, RECORDS, make_prompt, ScriptedTeacher(seed=1), ScriptedLabeller(), SCHEMA, KeepRules(), **options
    )


def test_pairs_differ_in_the_answer_and_fit_prmu():
    actual = pairs()
    kinds = Counter(pair.kind for pair in actual)
    assert set(kinds) == {"cross_profile", "no_profile", "wrong"}
    assert min(kinds.values()) > 40
    golds = {r.id: r for r in RECORDS}
    for pair in actual:
        row = check_pair(pair, "test")
        chosen, rejected = (parse(text, SCHEMA).trace for text in (row.chosen, row.rejected))
        assert chosen.answer != rejected.answer
        assert task_reward(row.task, chosen.answer, golds[row.record_id].gold) == 1.0
        assert tag_score(rejected, SCHEMA) == 1.0  # as well formed as the chosen one: only the user tells them apart
        if row.kind == "no_profile":
            assert "the history is empty" in row.rejected


def test_cross_profile_pairs_quote_the_other_user():
    by_user = {(r.user_id, r.task): r for r in RECORDS}
    cross = [p for p in pairs(kinds=["cross_profile"]) if p.task == "LaMP_2"]
    assert len(cross) > 10
    quoted = 0
    for pair in cross:
        evidence = parse(pair.rejected, SCHEMA).trace.steps[1].text
        if " as " in evidence:
            quoted += 1
            text, tag = evidence.removeprefix("the user tagged ").rsplit(" as ", 1)
            reference = by_user[pair.other_user_id, pair.task].profile
            assert {"tag": tag, "description": text} in [dict(item.fields) for item in reference]
    assert quoted > 10


def test_profile_texts_show_the_label():
    texts = profile_texts(next(r for r in RECORDS if r.task == "LaMP_3"))
    assert all(text[0] in "12345" for text in texts)


def test_pairs_are_deterministic_and_limited():
    assert pairs(max_pairs=30) == pairs(max_pairs=30)
    assert len(pairs(max_pairs=30)) == 30
