"""The recipe's block for a language model that writes or labels chains: its address, limits and price."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag, model_validator

from tagpr_rl.config.base import Closed, Count, Machines, NonNegative, PathText, Positive, worded

VariableName = Annotated[
    str, worded(r"[A-Za-z_][A-Za-z0-9_]*", "a variable's name (and a key itself never stands here)", secret=True)
]
LABEL_TOKENS = 48
"""Upper bound of the tokens of one step's label, `{"i": 14, "tag": "a_long_name"}, `, with any tokenizer."""
CHAT_ROOM = 1024
"""Tokens for a teacher's instruction and a chain to label, beside the prompt of the recipe."""
BY_NAME, BY_BLOCK = "<name>", "<block>"
"""Tags of the two ways to name a teacher; load.py leaves them out of its messages."""


class PricesBlock(Closed):
    """Price of a million tokens, in any one currency."""

    prompt: NonNegative = 0.0
    """Price of a million prompt tokens."""
    completion: NonNegative = 0.0
    """Price of a million completion tokens."""


class SpendBlock(Closed):
    """What may be spent over all attempts at a run; null = no limit. A later run with more goes on."""

    tokens: Annotated[int, Field(ge=0)] | None = None
    """Most prompt and completion tokens together."""
    money: NonNegative | None = None
    """Most money, in the currency of `prices`."""


class RetryBlock(Closed):
    """What happens after HTTP 429 and 5xx, a time-out, a lost connection or a body that is no answer."""

    times: Annotated[int, Field(ge=0)] = 6
    """Attempts at one request after the first."""
    first_wait_s: Positive = 0.5
    """The wait before retry n (from 0) is drawn from [0, first_wait_s * 2^n] (exponential backoff, full jitter)."""
    longest_wait_s: Positive = 60.0
    """Longest wait that is drawn. A longer Retry-After of the server is obeyed all the same."""


class TimeoutsBlock(Closed):
    """Seconds. An answer that comes later is not waited for, but may have been charged by the provider."""

    attempt_s: Positive = 300.0
    """Limit of one attempt at one request, from sending to the last byte."""
    request_s: Positive = 1800.0
    """Limit of one request with all its attempts and waits."""
    total_s: Positive | None = None
    """Limit of all requests of one call: after it no attempt starts, and running ones are waited for."""


class EndpointBlock(Closed):
    """A teacher or labeller: rules, any OpenAI-compatible endpoint, or vLLM in this run."""

    kind: Literal["scripted", "heuristic", "grounded", "auto", "openai", "vllm", "self"]
    """scripted, heuristic and grounded = rules without a model, grounded with the gold at hand; auto = scripted or
    heuristic by the data; openai = an endpoint over HTTP; vllm = an engine in this run; self = the weights of the
    stage's `init` in such an engine, whose right chains the next SFT learns (STaR, arXiv 2203.14465)."""
    base_url: Annotated[str, worded(r"https?://[^\s$\\]+", "a web address such as http://localhost:8000/v1")] | None = (
        None
    )
    """openai: the address, mostly ending in /v1. Without a login or a query: keys belong in the environment."""
    model: PathText | None = None
    """openai: the name that the endpoint knows. vllm: a Hugging Face folder or hub name."""
    api_key_env: VariableName | None = None
    """openai: the environment variable that holds the key; null = the endpoint wants none."""
    trained: bool = False
    """true = the teacher is a model that an earlier run trained: it gets the record's own prompt, and its tags are
    removed; false = any other model, which gets the teacher's instruction."""
    concurrency: Count = 64
    """openai: requests in flight. vllm: requests that each engine gets at a time, and the cache at once; the engine
    works on 256 of them at most."""
    temperature: NonNegative = 0.7
    """Sampling temperature of the teacher and of a labeller's second pass; its first pass is greedy."""
    max_tokens: Count = 1024
    """Longest completion in tokens; a thinking model's thoughts count."""
    max_model_len: Count | None = None
    """vllm: prompt and completion together; null = data.prompt.max_tokens + 1024 + max_tokens."""
    tensor_parallel: Machines | None = None
    """vllm: devices of one engine; null = placement.tensor_parallel. There are as many engines as the run's devices
    have room for."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """openai: further keys of the request, for example {chat_template_kwargs: {enable_thinking: false}}."""
    retries: RetryBlock = RetryBlock()
    """How often a failed request is sent again, and after which waits."""
    timeouts: TimeoutsBlock = TimeoutsBlock()
    """Limits in seconds for an attempt, a request and a whole call."""
    prices: PricesBlock = PricesBlock()
    """Prices that turn tokens into money in the report and for `budget.money`."""
    budget: SpendBlock = SpendBlock()
    """Most tokens or money that this role may spend; the stage stops there."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> EndpointBlock:
        needs = {"openai": ("base_url", "model"), "vllm": ("model",)}.get(self.kind, ())
        missing = [key for key in needs if getattr(self, key) is None]
        if missing:
            raise ValueError(f"kind: {self.kind} needs {' and '.join(missing)}")
        remote = {"base_url", "api_key_env", "extra_body"}
        foreign = {
            "vllm": remote,
            "self": {*remote, "model", "trained"},
            "openai": {"max_model_len", "tensor_parallel"},
        }
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
    Annotated[Literal["scripted", "heuristic", "grounded", "auto", "self"], Tag(BY_NAME)]
    | Annotated[EndpointBlock, Tag(BY_BLOCK)],
    Discriminator(_how),
]
LabellerChoice = Annotated[
    Annotated[Literal["scripted"], Tag(BY_NAME)] | Annotated[EndpointBlock, Tag(BY_BLOCK)],
    Discriminator(_how),
]
