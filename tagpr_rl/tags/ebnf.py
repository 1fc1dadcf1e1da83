"""The response grammar with a schema's tags as EBNF, for a server that generates within a grammar.

vLLM takes it as `structured_outputs={"grammar": ...}` (the dialect of xgrammar). It keeps the form of `grammar.py`: a
thought of steps with known tags, each with text, then an answer. It is wider than the schema in counts and orders of
tags, and narrower than `parse` in one point: no text holds "<" at all.
"""

from __future__ import annotations

from tagpr_rl.tags.schema import THINK, TagSchema


def ebnf(schema: TagSchema, *, prefilled: bool = False) -> str:
    """The grammar; its first rule is `root`. `prefilled`: the prompt has opened `<think>`."""
    opening = "" if prefilled else f'"<{THINK}>" space '
    tags = " | ".join(f'"<{name}>" text "</{name}>"' for name in schema.names)
    return "\n".join(
        (
            f'root ::= {opening}(step space)+ "</{THINK}>" space text',
            f"step ::= {tags}",
            r"text ::= [^< \n\r\t] [^<]*",
            r"space ::= [ \n]?",
            "",
        )
    )
