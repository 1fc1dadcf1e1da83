"""A model's folder against the recipe: files, weights, tokenizer, positions, heads, and who can load it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagpr_rl.config import PrmuStage
from tagpr_rl.config.endpoints import CHAT_ROOM
from tagpr_rl.config.environment import proxy_hint
from tagpr_rl.files import is_hub_name
from tagpr_rl.model.gguf_header import read_header
from tagpr_rl.model.loading import load_mistakes
from tagpr_rl.plan.memory import PRMU_TOKENS, longest
from tagpr_rl.plan.shapes import SHAPES, ModelShape
from tagpr_rl.preflight.finding import Finding, PlannedRun
from tagpr_rl.preflight.known import generating_architectures, model_types
from tagpr_rl.preflight.weights import Tensor, blank, not_finite, read_json_file, tensors, weight_files
from tagpr_rl.types import TagprError

HUB_SECONDS = 5.0
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
MOST_TOKENIZER_BYTES = 200 << 20


@dataclass(frozen=True, slots=True)
class Model:
    """One model that the recipe names."""

    key: str
    path: str
    tokens: int
    """The longest sequence that it gets."""
    trains: bool = False
    generates: bool = False
    tensor_parallel: int = 1

    def wrong(self, wrong: str, remedy: str = "", *, warning: bool = False, here: bool = False) -> Finding:
        """A finding about this model."""
        return Finding(self.key, self.path, wrong, remedy, warning, here)


def named(plan: PlannedRun) -> Iterator[Model]:
    """Every model that a stage still to do loads."""
    recipe, parallel = plan.recipe, plan.recipe.placement.tensor_parallel
    if recipe.model.path is not None:
        yield Model("model.path", str(recipe.model.path), longest(recipe), True, True, parallel)
    for name, stage in plan.stages(PrmuStage):
        if stage.backbone is not None:
            yield Model(f"stages.{name}.backbone", stage.backbone, PRMU_TOKENS, trains=True)
    if recipe.data.retrieval.encoder is not None:
        yield Model("data.retrieval.encoder", str(recipe.data.retrieval.encoder), 0)
    for where, block in plan.endpoints():
        if block.kind == "vllm":
            room = block.max_model_len or recipe.data.prompt.max_tokens + CHAT_ROOM + block.max_tokens
            own = block.tensor_parallel or parallel
            yield Model(f"{where}.model", str(block.model), room, generates=True, tensor_parallel=own)


def models(plan: PlannedRun) -> Iterator[Finding]:
    """Every model that the recipe names: its folder, or its config on the hub."""
    for model in named(plan):
        folder = Path(model.path)
        if folder.is_dir() or (folder.suffix == ".gguf" and folder.is_file() and model.key == "model.path"):
            yield from _folder(plan, model, folder)
        elif not is_hub_name(model.path):
            what = "a file, not a folder" if folder.exists() else "no such folder"
            remedy = "give a Hugging Face model folder or a hub name (owner/name)"
            yield model.wrong(what, remedy, here=not folder.exists())
        else:
            yield from _hub(plan, model)
    tiny = plan.recipe.model.path is None
    if tiny and plan.recipe.placement.tensor_parallel > 1:
        yield from _heads("model.tiny.heads", plan.recipe.model.tiny.heads, plan)


def _hub(plan: PlannedRun, model: Model) -> Iterator[Finding]:
    """A hub name: the copy in the cache, or config.json from the hub."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(model.path, "config.json")
    if isinstance(cached, str):
        yield from _folder(plan, model, Path(cached).parent)
        return
    if (shape := SHAPES.get(model.path.removesuffix("-Base"))) is not None:
        yield from _config(plan, model, _published(shape, base=model.path.endswith("-Base")))
    if constants.HF_HUB_OFFLINE:
        yield model.wrong("not in the Hugging Face cache, and HF_HUB_OFFLINE is set", "download it first", here=True)
        return
    request = urllib.request.Request(url := hf_hub_url(model.path, "config.json"))
    if token := plan.environment.get("HF_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener().open(request, timeout=HUB_SECONDS) as reply:
            config = json.loads(reply.read(10 << 20))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 407):
            yield model.wrong(
                f"the hub refuses it (HTTP {error.code}): gated, private, or no such model{proxy_hint(url)}",
                "accept its terms and set HF_TOKEN, or correct the name",
                here=True,
            )
        elif error.code == 404:
            yield model.wrong("the hub has no such model, or it has no config.json", "correct the name")
        else:
            yield model.wrong(f"the hub answers HTTP {error.code}", "try again later", warning=True)
        return
    except (OSError, ValueError) as error:
        yield model.wrong(
            f"not cached, and the hub cannot be reached ({getattr(error, 'reason', error)}{proxy_hint(url)})",
            f"download it on a machine with a network and give the folder with {model.key}=<folder>",
            here=True,
        )
        return
    if isinstance(config, dict) and shape is None:
        yield from _config(plan, model, config)


def _published(shape: ModelShape, *, base: bool) -> dict[str, Any]:
    """What config.json of a model in plan's table says."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 32_768 if base else 40_960,
    }


def _folder(plan: PlannedRun, model: Model, folder: Path) -> Iterator[Finding]:
    """Config, tokenizer and weights; each part is read even if another one is wrong."""
    config: dict[str, Any] = {}
    try:
        config = _read_config(folder)
    except (TagprError, OSError) as error:
        yield model.wrong(str(error))
    if config:
        yield from _config(plan, model, config)
    if folder.is_file():  # the model stage converts it, and compares the result with the file
        return
    yield from _code(model, folder, config)
    yield from _tokenizer_files(model, folder)
    try:
        found = [tensor for path in weight_files(folder) for tensor in tensors(path)]
    except TagprError as error:
        if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
            yield model.wrong("its weights are no safetensors files and are not checked", "convert them", warning=True)
        else:
            yield model.wrong(str(error))
        return
    except OSError as error:
        yield model.wrong(f"cannot be read ({error})")
        return
    if bad := list(not_finite(found)):
        yield model.wrong(f"NaN or infinite weights in {', '.join(bad)}", "copy or download it again")
    if bad := list(blank(found)):
        yield model.wrong(f"only zeros in {', '.join(bad)}", "its file may be cut; copy or download it again")
    if config and model.trains:
        yield from _shapes(model, folder, config, found)
    if model.key == "model.path":
        yield from _adapters(plan, found)


def _read_config(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        return read_header(folder).config()
    if not any(folder.iterdir()):
        raise TagprError(f"{folder}: empty; download the model into it")
    if not (folder / "config.json").is_file():
        raise TagprError(f"{folder}: no config.json there; give a Hugging Face model folder")
    return read_json_file(folder / "config.json")


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _config(plan: PlannedRun, model: Model, config: Mapping[str, Any]) -> Iterator[Finding]:
    """What config.json alone tells: who loads it, positions, heads, quantized weights."""
    names = config.get("architectures") or []
    kind, known = str(config.get("model_type", "")), generating_architectures()
    if "model_type" not in config:
        yield model.wrong("config.json has no model_type, so transformers cannot load it", "download it again")
    elif model_types() and kind not in model_types() and not config.get("auto_map"):
        yield model.wrong(f"model_type {kind!r} is unknown to the installed transformers", "use another model")
    if model.generates and known and not set(names) & known:
        what = f"architecture {', '.join(map(str, names)) or '(none)'}"
        yield model.wrong(f"{what}: the installed vLLM cannot write text with it", "use a causal language model")
    if model.trains and config.get("quantization_config"):
        method = (
            config["quantization_config"].get("quant_method", "?")
            if isinstance(config["quantization_config"], dict)
            else "?"
        )
        yield model.wrong(
            f"its weights are quantized ({method}) and cannot be trained", "use the model that it was made of"
        )
    positions = most_positions(_text(config))
    if positions is not None and model.tokens > positions:
        keys = "data.prompt.max_tokens + max_response_tokens" if model.key == "model.path" else "prompt and completion"
        yield model.wrong(f"{keys} = {model.tokens} tokens, and it has {positions} positions", "shorten them")
    heads = _text(config).get("num_attention_heads")
    if model.generates and isinstance(heads, int):
        yield from _heads(model.key, heads, plan, _text(config).get("num_key_value_heads"))


def most_positions(config: Mapping[str, Any]) -> int | None:
    """Longest sequence of the model, with a stretched rotary embedding taken into account; None if it is not said."""
    value = next((config[key] for key in _POSITIONS if isinstance(config.get(key), int)), None)
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if isinstance(scaling, dict) and isinstance(scaling.get("factor"), int | float) and value is not None:
        original = scaling.get("original_max_position_embeddings", value)
        if isinstance(original, int) and scaling.get("rope_type", scaling.get("type")) != "llama3":
            return max(int(value), int(original * scaling["factor"]))
    return value


def _heads(key: str, heads: int, plan: PlannedRun, key_heads: Any = None) -> Iterator[Finding]:
    """Heads that the engines' and the trainers' devices do not divide."""
    tensor, sequence = plan.recipe.placement.tensor_parallel, plan.recipe.training.sequence_parallel
    if tensor > 1 and heads % tensor:
        yield Finding(
            "placement.tensor_parallel",
            tensor,
            f"does not divide the {heads} attention heads of {key}",
            "use a divisor",
        )
    elif tensor > 1 and isinstance(key_heads, int) and key_heads > 0 and key_heads % tensor and tensor % key_heads:
        yield Finding(
            "placement.tensor_parallel",
            tensor,
            f"does not fit the {key_heads} key heads of {key}",
            "use a divisor or a multiple",
        )
    if sequence > 1 and heads % sequence and key.startswith("model."):
        yield Finding(
            "training.sequence_parallel",
            sequence,
            f"does not divide the {heads} attention heads of {key}",
            "use a divisor",
        )


def _code(model: Model, folder: Path, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Python code in the folder, which is never run."""
    own = config.get("auto_map")
    if own and str(config.get("model_type")) not in model_types():
        yield model.wrong(
            "config.json (auto_map) asks for code from the folder, and code from a model folder is never run",
            "use a model that transformers and vLLM know themselves",
        )
    elif own or any(folder.glob("*.py")):
        yield model.wrong(
            "holds Python code, which is not run", "the installed transformers' own class is used", warning=True
        )
    file = folder / "tokenizer_config.json"
    if file.is_file():
        try:
            mapped = read_json_file(file).get("auto_map")
        except TagprError as error:
            yield model.wrong(str(error))
            return
        if mapped:
            yield model.wrong(
                "tokenizer_config.json (auto_map) asks for code from the folder, which is never run",
                "use a model whose tokenizer needs none",
            )


def _tokenizer_files(model: Model, folder: Path) -> Iterator[Finding]:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        yield model.wrong(f"no tokenizer there ({', '.join(TOKENIZERS[:3])})", "copy the tokenizer's files into it")
    elif model.generates and not (folder / "tokenizer_config.json").is_file():
        yield model.wrong("no tokenizer_config.json there", "copy the tokenizer's files into it")


def tokenizer_size(folder: Path) -> int | None:
    """Largest token id plus 1, by tokenizer.json; None without that file. TagprError if it is damaged."""
    file = folder / "tokenizer.json"
    if not file.is_file() or file.stat().st_size > MOST_TOKENIZER_BYTES:
        return None
    raw = read_json_file(file)
    try:
        vocabulary = raw["model"]["vocab"]
        largest = max(vocabulary.values(), default=-1) if isinstance(vocabulary, dict) else len(vocabulary) - 1
        return 1 + int(max([largest, *(int(token["id"]) for token in raw.get("added_tokens") or ())]))
    except (KeyError, TypeError, ValueError) as error:
        raise TagprError(f"{file}: not a tokenizer ({type(error).__name__}: {error}); copy it again") from None


def _shapes(model: Model, folder: Path, config: Mapping[str, Any], found: list[Tensor]) -> Iterator[Finding]:
    """The tensors against config.json, and the vocabulary against the tokenizer."""
    text = _text(config)
    vocabulary = text.get("vocab_size")
    embeddings = [t for t in found if t.name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))]
    if not found:
        yield model.wrong("its weights' files hold no tensor", "download it again")
        return
    rows = embeddings[0].shape[0] if embeddings and embeddings[0].shape else None
    if rows is not None and isinstance(vocabulary, int) and rows != vocabulary:
        yield model.wrong(
            f"{embeddings[0].name} has {rows} rows, and config.json says vocab_size {vocabulary}",
            "copy config and weights of one model",
        )
    try:
        size = tokenizer_size(folder)
    except TagprError as error:
        yield model.wrong(str(error))
        return
    most = rows or vocabulary
    if size is not None and isinstance(most, int) and size > most:
        yield model.wrong(
            f"its tokenizer has ids up to {size - 1}, and the model has {most} embeddings",
            "copy the model's own tokenizer, or resize its embeddings",
        )
    if model.generates and text.get("eos_token_id", config.get("eos_token_id")) is None and vocabulary:
        yield model.wrong("config.json names no eos_token_id: responses may run to their limit", "add it", warning=True)
    if config.get("quantization_config") or str(config.get("model_type")) not in model_types():
        return  # `_config` names it
    for mistake in load_mistakes(folder, [(t.name, t.dtype, t.shape) for t in found], causal=model.generates):
        yield model.wrong(mistake, "they would be random; download config and weights of one model again")


def _adapters(plan: PlannedRun, found: list[Tensor]) -> Iterator[Finding]:
    """Target modules of LoRA that the weights do not have."""
    lora = plan.recipe.lora
    if lora is None or isinstance(lora.target_modules, str):
        return
    parts = {part for tensor in found for part in tensor.name.split(".")}
    if missing := [name for name in lora.target_modules if name not in parts]:
        yield Finding("lora.target_modules", missing[0], "no layer of the model has that name", "name one that it has")
