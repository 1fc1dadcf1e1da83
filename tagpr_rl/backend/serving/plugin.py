"""The entry point of `vllm.general_plugins`: makes `vllm serve MODEL --reasoning-parser tagpr` work.

vLLM loads it in every one of its processes, so nothing is imported before the parser is named.
"""

from __future__ import annotations


def register() -> None:
    """Tell vLLM where the reasoning parser `tagpr` is."""
    from vllm.reasoning import ReasoningParserManager

    ReasoningParserManager.register_lazy_module("tagpr", "tagpr_rl.backend.serving.reasoning_parser", "TagprParser")
