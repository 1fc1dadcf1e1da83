"""A teacher that means harm, or only nonsense: endless bodies, two endpoints of one name, garbage that costs money."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from chat_server import serving

from tagpr_rl.chains.client.answers import AnswerCache
from tagpr_rl.chains.client.chat import ChatRequest, Reply, ReplyStatus
from tagpr_rl.chains.client.openai_client import OpenAIGenerator
from tagpr_rl.chains.keep import KeepRules
from tagpr_rl.chains.labellers.label import ScriptedLabeller
from tagpr_rl.chains.teachers.interface import TeacherRequest
from tagpr_rl.chains.teachers.write import TRIAL, write_chains
from tagpr_rl.config.endpoints import EndpointBlock
from tagpr_rl.tags.schema import default_schema
from tagpr_rl.types import LampRecord, Prompt, TagprError

REQUESTS = [ChatRequest(({"role": "user", "content": f"question #{i}"},)) for i in range(3)]


def generate(url: str, path: Path) -> list[Reply]:
    raw = {"kind": "openai", "base_url": url, "model": "m", "retries": {"times": 1, "first_wait_s": 0.02}}
    with AnswerCache(path) as cache:
        return OpenAIGenerator(EndpointBlock.model_validate(raw), cache, account="p").generate(REQUESTS)


@pytest.mark.slow
@pytest.mark.parametrize("always, limit", [("endless", "16384 KiB"), ("bomb", "256 KiB")])
def test_a_body_without_end_fills_no_memory(always: str, limit: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with serving(always=always) as url:
        replies = generate(url, tmp_path / "a")
    assert {reply.status for reply in replies} == {ReplyStatus.FAILED}
    assert all(f"more than {limit}" in reply.detail for reply in replies), replies
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10  # KiB


def test_two_endpoints_with_models_of_one_name_share_no_answer(tmp_path: Path) -> None:
    with serving() as one, serving() as two:
        first, again, other = (generate(url, tmp_path / "a") for url in (one, one, two))
    assert [reply.cached for reply in [*first, *again, *other]] == [False] * 3 + [True] * 3 + [False] * 3


class Nonsense:
    """A teacher that writes `good` chains, then noise."""

    name = "noise"
    prompts: dict[str, str] = {}  # noqa: RUF012  (the protocol's attribute)

    def __init__(self, good: int = 0, status: ReplyStatus = ReplyStatus.OK) -> None:
        self.paid, self.good, self.status = 0, good, status

    def generate(self, requests: list[TeacherRequest]) -> list[Reply]:
        start, self.paid = self.paid, self.paid + len(requests)
        chain = "The history has dry titles.\nThe user likes short ones.\nSo the short one fits.\nAnswer: 4"
        return [Reply(chain if n < self.good else "lorem \x1b[31m ipsum", self.status) for n in range(start, self.paid)]


def requests(n: int) -> list[TeacherRequest]:
    record = LampRecord("r", "LaMP_3", "train", "u", "What is the score?", (), "4")
    prompt = Prompt("r", "LaMP_3", "u", ({"role": "user", "content": "q"},), (), 0, False, 4)
    return [TeacherRequest(record, prompt, sample) for sample in range(n)]


def write(n: int, teacher: Nonsense) -> int:
    schema = default_schema()
    return len(write_chains(requests(n), teacher, ScriptedLabeller(), schema, KeepRules()).items)


def test_a_teacher_of_nothing_but_garbage_is_paid_for_a_trial_only() -> None:
    teacher = Nonsense()
    with pytest.raises(
        TagprError, match=f"none of the first {TRIAL} replies of the teacher noise is a chain"
    ) as caught:
        write(1000, teacher)
    assert teacher.paid == TRIAL and "\x1b" not in str(caught.value) and "ipsum" in str(caught.value)


def test_one_chain_among_the_first_or_an_outage_is_no_garbage() -> None:
    for teacher in (Nonsense(good=1), Nonsense(status=ReplyStatus.FAILED), Nonsense(status=ReplyStatus.BUDGET)):
        assert write(40, teacher) == 40 and teacher.paid == 40
    assert write(TRIAL - 1, Nonsense()) == TRIAL - 1
