"""The recipe's block for a language model that writes or labels chains: where it is, its limits, its price."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag, model_validator

from tagpr_rl.config.base import Closed, Count, NonNegative, Positive

BY_NAME, BY_BLOCK = "<name>", "<block>"
"""Tags of the two ways to name a teacher; config.py leaves them out of its messages."""


class PricesBlock(Closed):
    """Price of a million tokens, in any one currency."""

    prompt: NonNegative = 0.0
    completion: NonNegative = 0.0


class SpendBlock(Closed):
    """What may be spent over all attempts at a run; null = no limit. A later run with more goes on."""

    tokens: Annotated[int, Field(ge=0)] | None = None
    """Prompt and completion tokens together."""
    money: NonNegative | None = None
    """In the currency of `prices`."""


class RetryBlock(Closed):
    """What happens after HTTP 429 and 5xx, a time-out, a lost connection or a body that is no answer."""

    times: Annotated[int, Field(ge=0)] = 6
    """Attempts after the first."""
    first_wait_s: Positive = 0.5
    """The wait before retry n (from 0) is drawn from [0, first_wait_s * 2^n] (exponential backoff, full jitter)."""
    longest_wait_s: Positive = 60.0
    """Upper end of that range. A longer Retry-After is obeyed all the same."""


class TimeoutsBlock(Closed):
    """Seconds. An answer that comes later is not waited for, but may have been charged by the provider."""

    attempt_s: Positive = 300.0
    """One attempt at one request, from sending to the last byte."""
    request_s: Positive = 1800.0
    """One request with all its attempts and waits."""
    total_s: Positive | None = None
    """All requests of one call: after it no attempt starts, and those that run are waited for."""


class EndpointBlock(Closed):
    """A teacher or labeller: rules of ours, any OpenAI-compatible endpoint, or vLLM in this run."""

    kind: Literal["scripted", "heuristic", "auto", "openai", "vllm"]
    base_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """openai: the address, mostly ending in /v1. Without a login or a query: keys belong in the environment."""
    model: str | None = None
    """openai: the name that the endpoint knows. vllm: a Hugging Face folder or hub name."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """openai: the environment variable that holds the key; null = the endpoint wants none."""
    trained: bool = False
    """As teacher: a model that this project trained, which is asked with the record's own prompt and whose tags are
    taken off; false = any other model, asked with the teacher's instruction."""
    concurrency: Count = 64
    """openai: requests in flight. vllm: sequences in one batch of the engine."""
    temperature: NonNegative = 0.7
    max_tokens: Count = 1024
    """Longest completion; a thinking model's thoughts count."""
    max_model_len: Count | None = None
    """vllm: prompt and completion together; null = data.prompt.max_tokens + 1024 + max_tokens."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """openai: further keys of the request, for example {chat_template_kwargs: {enable_thinking: false}}."""
    retries: RetryBlock = RetryBlock()
    timeouts: TimeoutsBlock = TimeoutsBlock()
    prices: PricesBlock = PricesBlock()
    budget: SpendBlock = SpendBlock()

    @model_validator(mode="after")
    def _fits_its_kind(self) -> EndpointBlock:
        needs = {"openai": ("base_url", "model"), "vllm": ("model",)}.get(self.kind, ())
        missing = [key for key in needs if getattr(self, key) is None]
        if missing:
            raise ValueError(f"kind: {self.kind} needs {' and '.join(missing)}")
        foreign = {"vllm": {"base_url", "api_key_env", "extra_body"}, "openai": {"max_model_len"}}
        fields = type(self).model_fields
        unused = foreign.get(self.kind, set(fields) - {"kind"})
        extra = sorted(
            key for key in unused if getattr(self, key) != fields[key].get_default(call_default_factory=True)
        )
        if extra:
            raise ValueError(f"kind: {self.kind} does not use {', '.join(extra)}; remove it")
        if self.budget.money is not None and not (self.prices.prompt or self.prices.completion):
            raise ValueError("budget.money needs `prices` (per million tokens)")
        address = urlsplit(self.base_url or "")
        if "@" in address.netloc or address.query:
            raise ValueError("base_url holds a login or a query; name the key's variable in api_key_env")
        return self


def _how(value: Any) -> str:
    return BY_NAME if isinstance(value, str) else BY_BLOCK


TeacherChoice = Annotated[
    Annotated[Literal["scripted", "heuristic", "auto"], Tag(BY_NAME)] | Annotated[EndpointBlock, Tag(BY_BLOCK)],
    Discriminator(_how),
]
LabellerChoice = Annotated[
    Annotated[Literal["scripted"], Tag(BY_NAME)] | Annotated[EndpointBlock, Tag(BY_BLOCK)],
    Discriminator(_how),
]
