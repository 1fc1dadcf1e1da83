"""The cost of requests: tokens and money spent, and a ledger that keeps the requests in flight within the budget."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tagpr_rl.chains.client.chat import ChatRequest
from tagpr_rl.config.endpoints import PricesBlock, SpendBlock

TEMPLATE_TOKENS = 32
"""Upper bound of a chat template's own tokens, per message and for the opening of the reply."""


@dataclass(frozen=True, slots=True)
class Spend:
    """Tokens and money."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    unsure_tokens: int = 0
    """Upper bound of the tokens whose charge is unknown: of answers without a `usage`, and of requests that were
    sent and ended with a time-out, a lost connection or a broken body."""
    money: float = 0.0
    """All of the above at the endpoint's prices."""

    @property
    def tokens(self) -> int:
        """All tokens that count against a budget."""
        return self.prompt_tokens + self.completion_tokens + self.unsure_tokens

    def __add__(self, other: Spend) -> Spend:
        return Spend(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.unsure_tokens + other.unsure_tokens,
            self.money + other.money,
        )


def most_tokens(request: ChatRequest) -> tuple[int, int]:
    """(prompt, completion): upper bounds of the tokens that one attempt can be charged for.

    A token of a byte-level tokenizer is at least one byte of UTF-8, so the number of bytes bounds the tokens of the
    prompt (at about four times the true count). Structured output may put the schema into the prompt.
    """
    size = sum(len(text.encode("utf-8", "surrogatepass")) for message in request.messages for text in message.values())
    if request.json_schema is not None:
        size += len(json.dumps(request.json_schema))
    return size + TEMPLATE_TOKENS * (len(request.messages) + 1), request.max_tokens


class Ledger:
    """Keeps spent plus reserved within the budget, as long as no attempt costs more than was reserved for it."""

    def __init__(self, budget: SpendBlock, prices: PricesBlock, before: Spend) -> None:
        """`before`: the spending of earlier runs that counts against the same budget."""
        self._budget, self._prices = budget, prices
        self.spent = before
        self.held = Spend()
        self.in_flight = 0

    def price(self, prompt: int, completion: int) -> float:
        """Cost of tokens, in the currency of the prices."""
        return (prompt * self._prices.prompt + completion * self._prices.completion) / 1e6

    def describe(self) -> str:
        """What is spent and what the budget allows, for a message."""
        parts = []
        if self._budget.tokens is not None:
            parts.append(f"{self.spent.tokens:,} of budget.tokens {self._budget.tokens:,} are spent")
        if self._budget.money is not None:
            parts.append(f"{self.spent.money:.4f} of budget.money {self._budget.money:g} are spent")
        return " and ".join(parts) or "there is no budget"

    def hold(self, prompt: int, completion: int) -> bool:
        """Reserve the upper bound of one attempt. False, and nothing is reserved, if the budget does not cover it."""
        money = self.price(prompt, completion)
        tokens, cost = self._budget.tokens, self._budget.money
        if tokens is not None and self.spent.tokens + self.held.tokens + prompt + completion > tokens:
            return False
        if cost is not None and self.spent.money + self.held.money + money > cost * (1 + 1e-12):
            return False
        self.held += Spend(prompt, completion, 0, money)
        self.in_flight += 1
        return True

    def release(self, held: tuple[int, int], used: tuple[int, int] | None, *, charged: bool = True) -> Spend:
        """End an attempt, and return its cost: 0 if it was not `charged`, and `held` if `used` is None (unknown)."""
        self.in_flight -= 1
        self.held += Spend(-held[0], -held[1], 0, -self.price(*held))
        if not charged:
            cost = Spend()
        elif used is None:
            cost = Spend(0, 0, sum(held), self.price(*held))
        else:
            cost = Spend(*used, 0, self.price(*used))
        self.spent += cost
        return cost
