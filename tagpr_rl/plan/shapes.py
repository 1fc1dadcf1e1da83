"""Sizes of models and figures of devices: the tables that `plan` computes with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tagpr_rl.types import TagprError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Qwen3-like decoder: grouped-query attention with query and key norms, gated feed-forward, RMS norms."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    """Whether input embedding and output layer are one tensor."""

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear layer of one block, by its name in transformers."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, key),
            "v_proj": (self.hidden, key),
            "o_proj": (query, self.hidden),
            "gate_proj": (self.hidden, self.ffn),
            "up_proj": (self.hidden, self.ffn),
            "down_proj": (self.ffn, self.hidden),
        }

    @property
    def block(self) -> int:
        """Parameters of one block: linear layers, two RMS norms, query and key norms."""
        return sum(a * b for a, b in self.linear_shapes.values()) + 2 * self.hidden + 2 * self.head_dim

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding."""
        return self.vocab * self.hidden

    @property
    def largest(self) -> int:
        """Parameters of the largest tensor."""
        return max(self.embedding, *(a * b for a, b in self.linear_shapes.values()))

    @property
    def parameters(self) -> int:
        """All parameters; a tied output layer counts once."""
        return self.layers * self.block + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied with: all but the looked-up embedding."""
        return self.layers * self.block + self.hidden + self.embedding

    def lora_parameters(self, rank: int, targets: str | tuple[str, ...]) -> int:
        """Parameters of adapters: rank * (in + out) for each targeted linear layer. TagprError on an unknown name."""
        shapes = self.linear_shapes
        names = tuple(shapes) if isinstance(targets, str) else targets
        unknown = [name for name in names if name not in shapes]
        if unknown:
            raise TagprError(
                f"lora.target_modules: {unknown[0]!r} is no layer of {self.name}; it has {', '.join(shapes)}"
            )
        return self.layers * sum(rank * sum(shapes[name]) for name in names)

    def kv_bytes(self, width: int = 2) -> int:
        """Bytes of keys and values of one token: 2 * layers * kv_heads * head_dim * width."""
        return 2 * self.layers * self.kv_heads * self.head_dim * width

    def forward_flops(self, context: float) -> float:
        """FLOPs of one token's forward pass with `context` tokens before it on average: 2 per multiplied parameter,
        and 4 * heads * head_dim per layer and context token (scores and their weighted sum)."""
        return 2 * self.multiplied + 4 * self.layers * self.heads * self.head_dim * context


def _qwen3(size: str, layers: int, hidden: int, heads: int, ffn: int, *, tied: bool) -> tuple[str, ModelShape]:
    name = f"Qwen/Qwen3-{size}"
    return name, ModelShape(name, layers, hidden, heads, 8, 128, ffn, 151_936, tied)


SHAPES: dict[str, ModelShape] = dict(
    (
        _qwen3("0.6B", 28, 1024, 16, 3072, tied=True),
        _qwen3("1.7B", 28, 2048, 16, 6144, tied=True),
        _qwen3("4B", 36, 2560, 32, 9728, tied=True),
        _qwen3("8B", 36, 4096, 32, 12_288, tied=False),
        _qwen3("14B", 40, 5120, 40, 17_408, tied=False),
        _qwen3("32B", 64, 5120, 64, 25_600, tied=False),
    )
)
"""From the models' config.json on the Hugging Face hub."""

CHUNK_ENTRIES, CHUNK_BYTES = 1 << 22, 12
"""Logits that the loss works on in fp32 at a time, and its bytes for each (backend.forward.logprobs)."""


def loss_bytes(tokens: int, vocab: int, width: int) -> int:
    """Bytes of the loss of `tokens`: logits and their gradient of `width` bytes an entry, and a chunk at work."""
    return tokens * vocab * 2 * width + min(CHUNK_ENTRIES, tokens * vocab) * CHUNK_BYTES


_CONFIG_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
    "vocab": "vocab_size",
}


def shape_of(path: Path | str) -> ModelShape | None:
    """The shape of a hub name in the table, or of a local folder's config.json; None if neither is known.

    TagprError if config.json lacks a size.
    """
    name = str(path).removesuffix("-Base")
    if name in SHAPES:
        return SHAPES[name]
    file = Path(path) / "config.json"
    if not file.is_file():
        return None
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        raw = {"num_key_value_heads": raw["num_attention_heads"], **raw}  # older models have as many
        sizes = {field: int(raw[key]) for field, key in _CONFIG_KEYS.items()}
        head_dim = int(raw.get("head_dim") or sizes["hidden"] // sizes["heads"])
        usual = str(raw.get("model_type")).startswith("gemma")  # transformers' default where the file does not say
        return ModelShape(str(path), head_dim=head_dim, tied=bool(raw.get("tie_word_embeddings", usual)), **sizes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TagprError(f"{file}: not the config.json of a decoder ({type(error).__name__}: {error})") from error


@dataclass(frozen=True, slots=True)
class Device:
    """Figures of one accelerator."""

    memory_gib: float
    """As nvidia-smi reports it."""
    bf16_tflops: float
    """Dense bfloat16 with fp32 accumulation, without sparsity."""
    fp32_tflops: float
    """fp32 without tensor cores."""
    bandwidth_gbps: float
    """Memory bandwidth in GB/s."""
    source: str


DEVICES: dict[str, Device] = {
    "RTX4090-24GB": Device(24.0, 165.2, 82.6, 1008, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
    "L40S-48GB": Device(45.0, 362.0, 91.6, 864, "NVIDIA L40S data sheet (362 = 733 with sparsity / 2)"),
    "A100-40GB": Device(39.6, 312.0, 19.5, 1555, "NVIDIA A100 data sheet"),
    "A100-80GB": Device(80.0, 312.0, 19.5, 2039, "NVIDIA A100 data sheet, SXM"),
    "H100-80GB": Device(79.6, 989.0, 67.0, 3350, "NVIDIA H100 data sheet, SXM (1979 with sparsity / 2)"),
    "H200-141GB": Device(140.4, 989.0, 67.0, 4800, "NVIDIA H200 data sheet, SXM (1979 with sparsity / 2)"),
    "B200-180GB": Device(179.0, 2250.0, 75.0, 7700, "NVIDIA HGX B200 data sheet (4500 with sparsity / 2)"),
}
