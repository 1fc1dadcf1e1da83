"""What transformers would make of a folder's weights: which would be random, and which have another shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tagpr_rl.model.tokenizer import first_line

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Number formats of safetensors files that can be trained -> torch's names."""


def load_mistakes(
    folder: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]], *, causal: bool = True
) -> list[str]:
    """What is wrong with `tensors` (name, number format, shape) as the weights of the folder's config.json.

    transformers loads them by itself, but as shapes alone: no number is read, and no memory is taken. It would fill
    what is missing with random numbers and only warn. `causal`: with an output layer. [] for a kind of model that
    transformers does not know; other checks name it.
    """
    if find_spec("torch") is None:
        return []  # such an install can plan and not train
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    given = {}
    for name, dtype, shape in tensors:
        if dtype not in _DTYPES:
            return [f"{name} has numbers of format {dtype}, and only {', '.join(_DTYPES)} can be trained"]
        given[name] = torch.empty(shape, dtype=getattr(torch, _DTYPES[dtype]), device="meta")
    with _silence():
        try:
            config = AutoConfig.from_pretrained(folder)
            kinds: Any = (AutoModelForCausalLM if causal else AutoModel)._model_mapping
            if type(config) not in kinds:
                return []
            kind = kinds[type(config)]
            kind = kind[0] if isinstance(kind, tuple) else kind
            _, report = kind.from_pretrained(
                None, config=config, state_dict=given, device_map="meta", output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001  # it fails in the depths of several libraries
            return [f"transformers cannot build it ({type(error).__name__}: {first_line(error)})"]
    shapes = [f"{name} {tuple(own)} in place of {tuple(due)}" for name, own, due in report["mismatched_keys"]]
    missing = sorted(name for name in report["missing_keys"] if causal or "pooler" not in name)
    found = [("weights have other shapes than config.json says", sorted(shapes)), ("weights are missing", missing)]
    return [f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in found if names]


@contextmanager
def _silence() -> Iterator[None]:
    """No bar and no warning of transformers: the caller says what was found."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # critical
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
