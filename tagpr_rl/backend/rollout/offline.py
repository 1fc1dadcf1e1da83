"""A `Generator` on vLLM in this run: the same questions, cache and budget as an endpoint's, no server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tagpr_rl.backend.rollout.generate import Engines, engine_options
from tagpr_rl.chains.client.answers import AnswerCache, Questions
from tagpr_rl.chains.client.body import UnfinishedError, judge
from tagpr_rl.chains.client.chat import ChatRequest, Reply, ReplyStatus
from tagpr_rl.chains.client.spend import Ledger, Spend
from tagpr_rl.chains.client.usage import ReplyProgress
from tagpr_rl.config import EndpointBlock, Recipe
from tagpr_rl.config.endpoints import CHAT_ROOM
from tagpr_rl.config.placement import engine_count
from tagpr_rl.files import content_sha256
from tagpr_rl.prompts.tokens import ChatTokenizer
from tagpr_rl.tags.schema import schema_from
from tagpr_rl.types import TagprError


class OfflineGenerator:
    """One model in vLLM engines on all devices. They start at the first question that is not in the cache."""

    def __init__(
        self,
        recipe: Recipe,
        block: EndpointBlock,
        cache: AnswerCache,
        *,
        account: str,
        console: Console | None = None,
        before_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Needs a Ray session from the first `generate` on. `account` as in OpenAIGenerator; `before_start` frees the
        devices if another model holds them."""
        assert block.kind == "vllm" and block.model
        self.recipe, self.block, self.cache, self.account, self.console = recipe, block, cache, account, console
        self.model: str = block.model
        self._marks = fingerprint(Path(self.model))
        self._tensor = block.tensor_parallel or recipe.placement.tensor_parallel
        self._count = engine_count(recipe.platform, recipe.placement, self._tensor)
        self._before_start = before_start
        self._engines: Engines | None = None
        self._limit = 0

    @property
    def name(self) -> str:
        """The hub name, or the folder as the recipe gives it."""
        return self.model

    def close(self) -> None:
        """Free the device."""
        if self._engines is not None:
            self._engines.close()
            self._engines = None

    def generate(self, requests: Sequence[ChatRequest]) -> list[Reply]:
        """One reply per request, in order, committed batch by batch. A request too long for the model is REFUSED."""
        # A folder's weights are its identity: another stage's folder may come to have the same path.
        questions = Questions(Path(self.model).name, requests, self.cache, self._marks)
        answers: dict[bytes, Reply] = {}
        ledger = Ledger(self.block.budget, self.block.prices, self.cache.spent(self.account))
        before = ledger.spent.money
        if questions.open:
            self._start()
        with ReplyProgress(self.name, len(questions.open), self.console) as progress:
            waiting = list(questions.open.items())
            while waiting:
                batch, spend = self._batch(waiting[: self.block.concurrency * self._count], ledger)
                if not batch:
                    break
                charged = [(key, reply) for key, reply in batch.items() if reply.status != ReplyStatus.REFUSED]
                self.cache.put(Path(self.model).name, charged, self.account, spend)
                answers |= batch
                for reply in batch.values():
                    progress.add(reply, ledger.spent.money - before)
                waiting = waiting[len(batch) :]
        rest = Reply("", ReplyStatus.BUDGET, detail=f"not asked: {ledger.describe()}; raise the budget and run again")
        return questions.replies({key: answers.get(key, rest) for key in questions.open})

    def _start(self) -> None:
        if self._engines is not None:
            return
        self._before_start()
        from transformers import AutoConfig

        try:
            self.tokenizer = ChatTokenizer(Path(self.model), schema=schema_from(self.recipe.schema_file))
            longest = int(AutoConfig.from_pretrained(self.model).max_position_embeddings)
        except (OSError, ValueError) as error:
            raise TagprError(f"model {self.model!r}: {error}; give a Hugging Face folder or a hub name") from None
        wanted = self.block.max_model_len
        if wanted is not None and wanted > longest:
            raise TagprError(f"max_model_len is {wanted}, but {self.model} has {longest} positions; lower it")
        self._limit = wanted or min(self.recipe.data.prompt.max_tokens + CHAT_ROOM + self.block.max_tokens, longest)
        options = engine_options(self.recipe, tensor=self._tensor) | {
            "max_model_len": self._limit,
            "max_num_seqs": min(256, self.block.concurrency),
        }
        del options["worker_extension_cls"]  # its weights are never exchanged
        device = self.recipe.platform.device
        self._engines = Engines(self.model, options, device=device, count=self._count, tensor=self._tensor)

    def _batch(
        self, questions: Sequence[tuple[bytes, ChatRequest]], ledger: Ledger
    ) -> tuple[dict[bytes, Reply], Spend]:
        """Replies to the first questions that the budget covers, and what they cost."""
        done: dict[bytes, Reply] = {}
        encoded: dict[bytes, tuple[list[int], int]] = {}
        samplings = []
        for key, request in questions:
            ids = self.tokenizer.encode(self.tokenizer.render(request.messages))
            room = self._limit - len(ids)
            if room < 1:
                detail = f"the prompt has {len(ids)} tokens, and the model's limit is {self._limit}"
                done[key] = Reply("", ReplyStatus.REFUSED, detail=detail)
                continue
            most = min(request.max_tokens, room)
            if not ledger.hold(len(ids), most):
                break
            encoded[key] = (ids, most)
            samplings.append(self._sampling(request, most))
        spend = Spend()
        if encoded:
            prompts = [ids for ids, _ in encoded.values()]
            assert self._engines is not None
            outputs = self._engines.answer(prompts, samplings)
            for (key, (ids, most)), (reply, reason) in zip(encoded.items(), outputs, strict=True):
                done[key] = _reply(self.tokenizer.text(ids, reply), len(ids), len(reply), reason)
                used = len(ids), len(reply)
                spend += ledger.release((len(ids), most), used, charged=not reason.startswith("refused"))
        return done, spend

    def _sampling(self, request: ChatRequest, most: int) -> dict[str, Any]:
        return {
            "temperature": request.temperature,
            "max_tokens": most,
            "seed": request.seed if request.temperature > 0 else None,
            "json_schema": dict(request.json_schema) if request.json_schema is not None else None,
        }


def _reply(text: str, prompt: int, completion: int, reason: str) -> Reply:
    if reason.startswith("refused"):
        return Reply("", ReplyStatus.REFUSED, detail=reason.removeprefix("refused: "))
    try:
        status, detail = judge(text, reason)
    except UnfinishedError as error:
        status, detail = ReplyStatus.FAILED, str(error)
    return Reply(text, status, prompt, completion, detail=detail)


def fingerprint(folder: Path) -> dict[str, str]:
    """A hash of a folder's weights and tokenizer: over each file's name and content. {} for a hub name."""
    if not folder.is_dir():
        return {}
    total = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")]):
        total.update(f"{file.name}/{content_sha256(file)}/".encode())
    return {"weights": total.hexdigest()}
