"""How the evaluate stage asks a model: by which prompt, with how much room, and what becomes of an open thought."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tagpr_rl.config import EvaluateStage, ModelStage
from tagpr_rl.eval.lamp_eval import EvalResult, evaluate, question_key
from tagpr_rl.prompts.dataset import evenly
from tagpr_rl.prompts.tokens import ChatTokenizer, continuation
from tagpr_rl.stages.context import StageContext
from tagpr_rl.tags.thoughts import split_thought
from tagpr_rl.types import LampRecord, Prompt, TagprError

CHOICE_QUESTIONS = 200
"""Training questions, evenly spread, on which the best of several prompts is chosen."""
CLOSE, CLOSE_TOKENS = "\n</think>\n\n", 16
"""What ends a thought that the token limit cut, and room for it."""

Responses = list[tuple[str, bool]]
"""(text, whether the token limit cut it) of each response."""


@dataclass(frozen=True, slots=True)
class Request:
    """Who answers which questions, asked by which prompt (prompt.Style)."""

    model: str
    style: str
    records: Sequence[LampRecord]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with its prompts, the responses and what they score."""

    request: Request
    prompts: list[Prompt]
    texts: list[str]
    result: EvalResult


def room_for(stage: EvaluateStage, styles: Sequence[str], response_tokens: int, positions: int) -> tuple[int, int]:
    """(tokens that the engine keeps for one response, tokens of a thought of the prompt `thinking`).

    Args:
        styles: of all prompts that the stage asks with. Without `thinking` there is no thought of that kind: 0.
        response_tokens: data.prompt.max_response_tokens.
        positions: most tokens that the model can write after the longest prompt.

    A thought gets what is left after its end and an answer, and never more than `thinking_tokens`.
    """
    rest = CLOSE_TOKENS + response_tokens
    if "thinking" not in styles or positions <= rest:
        return response_tokens, 0
    thought = min(stage.thinking_tokens, positions - rest)
    return thought + rest, thought


class Asker:
    """Asks models in turn on one engine (backend.rollout.generate.Engine). `thought_tokens`: see `room_for`."""

    def __init__(self, context: StageContext, stage: EvaluateStage, engine: Any, thought_tokens: int) -> None:
        self.context, self.stage, self.engine = context, stage, engine
        self.thought_tokens = thought_tokens

    def ask(self, request: Request) -> Asked:
        """Generate and score. An open thought of the prompt `thinking` is closed, so that the model answers."""
        context, records = self.context, request.records
        folder = context.model_folder(request.model)
        tokenizer = ChatTokenizer(folder, request.style, context.schema)
        untrained = isinstance(context.recipe.stages[request.model], ModelStage)
        make = context.dataset.prompt_maker(request.style, tokenizer, untrained=untrained)
        prompts = [make(record) for record in records]
        rendered = [tokenizer.render(prompt.messages) for prompt in prompts]
        self.engine.use(folder)
        generate = partial(self.engine.responses, temperature=self.stage.temperature, seed=self.stage.seed)
        inputs = tokenizer.encode_many(rendered)
        if request.style == "thinking":
            limit = context.recipe.data.prompt.max_tokens + self.thought_tokens

            def go_on(texts: Sequence[str]) -> Responses:
                end = tokenizer.encode(CLOSE)
                return list(generate([[*ids[:limit], *end] for ids in tokenizer.encode_many(texts)]))

            responses = generate(inputs, max_tokens=self.thought_tokens)
            responses = close_thoughts(rendered, responses, go_on)
        else:
            responses = generate(inputs)
        keys = [question_key(record) for record in records]
        texts = [text for text, _ in responses]
        cut = {key for key, (_, is_cut) in zip(keys, responses, strict=True) if is_cut}
        by_key = dict(zip(keys, texts, strict=True))
        result = evaluate(records, by_key, context.schema, cut=cut)
        return Asked(request, prompts, texts, result)

    def choose(self, model: str, styles: Sequence[str]) -> tuple[str, dict[str, float]]:
        """(the prompt that suits the model best, prompt -> its score on training questions); {} if there is one only.

        Held-out questions have no part in it. A prompt without room for its thought is left out.
        """
        if "thinking" in styles and not self.thought_tokens:
            styles = [style for style in styles if style != "thinking"]
            text = f"stage '{self.context.name}': the prompt `thinking` has no room behind data.prompt.max_tokens"
            if not styles:
                raise TagprError(f"{text}, and base_prompts has no other; add one, or shorten the prompts")
            self.context.warn(f"{text} for a thought of '{model}', and is left out")
        train = [record for record in self.context.dataset.train if record.gold is not None]
        chosen = evenly(train, CHOICE_QUESTIONS)
        scores = {s: self.ask(Request(model, s, chosen)).result.score for s in styles} if len(styles) > 1 else {}
        return (best(scores) if scores else styles[0]), scores


def best(scores: Mapping[str, float]) -> str:
    """The prompt with the highest score; of equal ones the first."""
    return max(scores, key=lambda style: scores[style])


def close_thoughts(
    rendered: Sequence[str], responses: Responses, go_on: Callable[[Sequence[str]], Responses]
) -> Responses:
    """The responses, with each thought that is open at its end closed, and the answer that the model then gives.

    Such a response still counts as cut. `go_on` continues prompts that end in an open thought, behind CLOSE.
    """
    open_ = [i for i, (text, _) in enumerate(responses) if split_thought(text) is None]
    answers = go_on([rendered[i] + continuation(rendered[i], responses[i][0]) for i in open_]) if open_ else []
    closed = list(responses)
    for i, (answer, _) in zip(open_, answers, strict=True):
        closed[i] = (responses[i][0] + CLOSE + answer, True)
    return closed
