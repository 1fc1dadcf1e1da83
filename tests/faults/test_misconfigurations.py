"""A table of misconfigurations: each is found, by its key and in words, before anything starts."""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tagpr_rl.cli import main
from tagpr_rl.config import dump_recipe, load_recipe
from tagpr_rl.preflight import machine
from tagpr_rl.preflight.examine import examine, planned
from tagpr_rl.preflight.finding import Finding
from tagpr_rl.run.layout import RunDir
from tagpr_rl.types import TagprError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMOKE = RECIPES / "smoke.yaml"
Make = Callable[[Path], None]


# --------------------------------------------------------------------------------------------------- files made


def safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "F32") -> None:
    """The format by its definition: 8 bytes of the header's length, the header, the numbers."""
    header, offset = {}, 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [offset, offset + values.nbytes],
        }
        offset += values.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(values.tobytes() for values in tensors.values()))


CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 16,
    "vocab_size": 10,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def weights() -> dict[str, np.ndarray]:
    names = {"model.embed_tokens.weight": (10, 8), "model.norm.weight": (8,)}
    names |= {f"model.layers.{layer}.mlp.up_proj.weight": (16, 8) for layer in (0, 1)}
    return {name: np.ones(shape, dtype=np.float32) for name, shape in names.items()}


def model(config: dict[str, Any] | None = None, **change: Any) -> Make:
    """A small model in `model/`; `change` says what is wrong with it."""

    def make(folder: Path) -> None:
        own = folder / "model"
        own.mkdir()
        (own / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
        vocabulary = {f"w{i}": i for i in range(change.get("vocabulary", 10))}
        words = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
        tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": words}
        (own / "tokenizer.json").write_text(json.dumps(tokenizer))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **change.get("tokenizer_config", {})}
        (own / "tokenizer_config.json").write_text(json.dumps(settings))
        tensors = weights()
        if "tail" in change:
            tensors["model.layers.1.mlp.up_proj.weight"][:] = change["tail"]
        if "value" in change:
            tensors["model.norm.weight"][5] = change["value"]
        safetensors(own / "model.safetensors", tensors)
        if "cut" in change:
            path = own / "model.safetensors"
            path.write_bytes(path.read_bytes()[: -change["cut"]])
        for name, content in change.get("files", {}).items():
            (own / name).unlink() if content is None else (own / name).write_text(content)

    return make


def file(name: str, content: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return make


def lamp(outputs: bool = True, questions: int = 40) -> Make:
    """A user split of LaMP_2 with one user a question."""

    def make(folder: Path) -> None:
        own = folder / "lamp" / "LaMP_2"
        own.mkdir(parents=True)
        for split in ("train", "dev"):
            items = [{"id": "1", "description": "a film", "tag": "sci-fi"}]
            rows = [
                {"id": f"{split}{i}", "input": 'Which tag? description: a film about "x"', "profile": items}
                for i in range(questions)
            ]
            (own / f"{split}_questions.json").write_text(json.dumps(rows))
            golds = [{"id": row["id"], "output": "sci-fi"} for row in rows]
            if outputs:
                (own / f"{split}_outputs.json").write_text(json.dumps({"task": "LaMP_2", "golds": golds}))

    return make


def reward_module(name: str, content: str) -> Make:
    """A module of the user's, where imports find it."""

    def make(folder: Path) -> None:
        file(f"{name}.py", content + "\n")(folder)
        sys.path.append(str(folder))

    return make


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


# ----------------------------------------------------------------------------------------------------- the table


class Row(NamedTuple):
    """Overrides of the smoke recipe ({tmp} and {port} are filled in) -> the finding."""

    overrides: str
    key: str
    words: str
    make: Make | None = None
    warning: bool = False


OPENAI = "{{kind: openai, base_url: http://127.0.0.1:{port}/v1, model: m{more}}}"
MODEL = "model.path={tmp}/model"
TEACHER = "stages.chains.teacher="


def teacher(more: str) -> str:
    return TEACHER + "{kind: openai, base_url: http://127.0.0.1:{port}/v1, model: m, " + more + "}"


ROWS = [
    # numbers out of reason
    Row("stages.sft.lr=10", "stages.sft.lr", "diverge"),
    Row("stages.guided.lr=0.5", "stages.guided.lr", "diverge"),
    Row("stages.prmu.lr=1", "stages.prmu.lr", "diverge"),
    Row("stages.prmu.head_lr=3", "stages.prmu.head_lr", "diverge"),
    Row("stages.guided.lr=1e-30", "stages.guided.lr", "do not move"),
    Row("stages.sft.lr=.inf", "", "no finite number"),
    Row("stages.sft.betas=[0.9, 1.0]", "stages.sft.betas", "[0, 1)"),
    Row("stages.guided.betas=[-0.1, 0.99]", "stages.guided.betas", "[0, 1)"),
    Row("stages.guided.betas=[0.99, 0.9]", "stages.guided.betas", "unusual", warning=True),
    Row("stages.sft.weight_decay=50", "stages.sft.weight_decay", "decay faster"),
    Row("stages.sft.max_grad_norm=1e-9", "stages.sft.max_grad_norm", "scaled to nothing"),
    Row("stages.guided.temperature=50", "stages.guided.temperature", "noise"),
    Row("stages.guided.temperature=0.001", "stages.guided.temperature", "are equal"),
    Row("stages.guided.temperature=2", "stages.guided.temperature", "noise", warning=True),
    Row("stages.eval.temperature=7", "stages.eval.temperature", "noise"),
    Row("stages.guided.clip_low=1", "stages.guided.clip_low", "never clipped"),
    Row("stages.guided.clip_high=100", "stages.guided.clip_high", "never clipped"),
    Row("stages.guided.kl_coef=99", "stages.guided.kl_coef", "stays where it starts"),
    Row("stages.guided.weights.beta=80", "stages.guided.weights.beta", "drowns"),
    Row("stages.guided.weights.alpha=3", "stages.guided.weights.alpha", "drowns", warning=True),
    Row("stages.guided.prmu_timeout_s=0.001", "stages.guided.prmu_timeout_s", "no response is scored"),
    Row("stages.guided.prmu_timeout_s=1e7", "stages.guided.prmu_timeout_s", "after a day"),
    Row("platform.zmq_timeout_s=1000000", "platform.zmq_timeout_s", "hangs for a day"),
    Row("placement.prmu_serving.health_s=0.001", "placement.prmu_serving.health_s", "counts as dead"),
    Row("stages.sft.warmup_steps=100000", "stages.sft.warmup_steps", "learning rate reaches", warning=True),
    Row("stages.prmu.user_dropout=1", "stages.prmu.user_dropout", "never sees"),
    Row("stages.prmu.individual_weight=0", "stages.prmu.individual_weight", "no part"),
    Row("stages.chains.error_rate=1 stages.chains.keep_wrong_fraction=0", "stages.chains.error_rate", "is wrong"),
    Row("placement.prmu_serving.batch_tokens=1000000000000", "placement.prmu_serving.batch_tokens", "no memory"),
    Row("platform.threads=1000000000", "platform.threads", "than any machine"),
    Row("stages.guided.max_prompt_tokens=2", "stages.guided.max_prompt_tokens", "no question is left"),
    # language models
    Row(teacher("temperature: 9"), "stages.chains.teacher.temperature", "more than 2"),
    Row(teacher("api_key_env: TAGPR_NO_KEY"), "stages.chains.teacher.api_key_env", "no such variable"),
    Row(teacher("budget: {tokens: 0}"), "stages.chains.teacher.budget.tokens", "nothing may be asked"),
    Row(teacher("budget: {tokens: 7}"), "stages.chains.teacher.budget.tokens", "less than one answer"),
    Row(
        teacher("prices: {prompt: 1}, budget: {money: 0}"), "stages.chains.teacher.budget.money", "nothing may be asked"
    ),
    Row(teacher("timeouts: {attempt_s: 0.01}"), "stages.chains.teacher.timeouts.attempt_s", "too late"),
    Row(teacher("timeouts: {request_s: 10}"), "stages.chains.teacher.timeouts.request_s", "shorter than one attempt"),
    Row(teacher("concurrency: 1000000"), "stages.chains.teacher.concurrency", "connections"),
    Row(teacher("concurrency: 8"), "stages.chains.teacher.base_url", "nothing answers"),
    Row(TEACHER + "{kind: vllm, model: {tmp}/nowhere}", "stages.chains.teacher.model", "no such folder"),
    Row(
        TEACHER + "{kind: vllm, model: {tmp}/model, max_model_len: 512}",
        "stages.chains.teacher.max_model_len",
        "alone",
        model(),
    ),
    Row(TEACHER + "{kind: vllm, model: {tmp}/model}", "stages.chains.teacher.model", "2048 positions", model()),
    # schedule
    Row("stages.sft.save_every=500", "stages.sft.save_every", "before the last step", warning=True),
    Row("stages.prmu.save_every=500", "stages.prmu.save_every", "nothing is saved", warning=True),
    Row("stages.guided.stop.plateau.metric=reward", "stages.guided.stop.plateau.metric", "logs no such metric"),
    Row("stages.guided.stop.plateau.metric=reward/tsk/mean", "stages.guided.stop.plateau.metric", "reward/task/mean"),
    Row("stages.explore.stop.plateau.metric=reward/prmu/mean", "stages.explore.stop.plateau.metric", "logs no such"),
    Row("stages.guided.stop.plateau.metric=task/LaMP_5/mean", "stages.guided.stop.plateau.metric", "logs no such"),
    Row("stages.guided.stop.plateau.metric=parse/TRUNCATED", "stages.guided.stop.plateau.metric", "name parse/OK"),
    Row("stages.guided.stop.plateau.patience=50", "stages.guided.stop.plateau.patience", "can hold", warning=True),
    Row("stages.guided.stop.max_tokens=5", "stages.guided.stop.max_tokens", "after its first step"),
    Row("stages.guided.stop.max_seconds=0.1", "stages.guided.stop.max_seconds", "after its first step"),
    Row(
        "stages.guided.alerts.masked=null stages.guided.alerts.abort_on=[masked]",
        "stages.guided.alerts.abort_on",
        "switched off",
    ),
    Row("stages.explore.alerts.abort_on=[masked]", "stages.explore.alerts.abort_on", "no PRMU", warning=True),
    Row(
        "data.prompt.max_response_tokens=8 stages.explore.max_response_tokens=8",
        "data.prompt.max_response_tokens",
        "shortest well-formed",
    ),
    Row("stages.guided.max_response_tokens=5", "stages.guided.max_response_tokens", "shortest well-formed"),
    Row("stages.explore.rollouts_from=guided stages.explore.steps=4", "stages.explore.steps", "responses of 3 steps"),
    Row("stages.explore.rollouts_from=guided stages.explore.group_size=8", "stages.explore.group_size", "4 at a time"),
    Row("stages.explore.rollouts_from={tmp}", "stages.explore.rollouts_from", "step_0001.parquet is missing"),
    Row(
        "stages.explore.rollouts_from={tmp}",
        "stages.explore.rollouts_from",
        "cannot be read",
        file("step_0001.parquet", "no parquet"),
    ),
    # questions
    Row("data.tasks=[LaMP_5]", "data", "the embedded world has no LaMP_5"),
    Row("data.tasks=[LaMP_1,LaMP_7]", "data", "the embedded world has no LaMP_7"),
    Row("data.lamp_dir={tmp}/nowhere", "data.lamp_dir", "no such folder"),
    Row("data.lamp_dir={tmp} data.tasks=[LaMP_2]", "data.lamp_dir", "LaMP_2"),
    Row("data.lamp_dir={tmp}/lamp data.tasks=[LaMP_2]", "data.lamp_dir", "outputs", lamp(outputs=False)),
    Row(
        "data.lamp_dir={tmp}/lamp data.tasks=[LaMP_2] stages.chains.teacher=scripted",
        "stages.chains.teacher",
        "embedded world",
        lamp(),
    ),
    Row(
        "data.lamp_dir={tmp}/lamp data.tasks=[LaMP_2] stages.prmu.identity=true",
        "stages.prmu.identity",
        "40 of 40 training users",
        lamp(),
    ),
    Row("data.limit=1", "stages.guided.prompts_per_step", "training questions"),
    Row("data.limit=1", "stages.base.batch_size", "at most 4 training examples"),
    Row("stages.guided.filter.min_items=99", "stages.guided.prompts_per_step", "leaves 0 questions"),
    Row("stages.guided.filter.share=0.0001", "stages.guided.prompts_per_step", "filter leaves"),
    Row("stages.guided.filter={questions: 3}", "stages.guided.prompts_per_step", "filter leaves 3"),
    Row("stages.sft.batch_size=100000", "stages.sft.batch_size", "at most"),
    Row("stages.chains.max_pairs=2", "stages.prmu.batch_size", "at most 2 pairs"),
    Row("stages.eval.questions=2", "stages.eval.questions", "fewer than the 4 tasks", warning=True),
    Row("stages.eval.questions=4", "stages.eval.controls", "have one user, and a swap needs two"),
    Row("data.prompt.max_tokens=10", "data.prompt.max_tokens", "room for a profile item"),
    Row("stages.prmu.max_epochs=0.0001", "stages.prmu.max_epochs", "less than one update"),
    Row("data.prompt.max_tokens=3", "data.prompt.max_tokens", "limit max_tokens is 3"),
    Row("schema_file={tmp}/nowhere.yaml", "schema_file", "no such"),
    Row("schema_file={tmp}/s.yaml", "schema_file", "s.yaml", file("s.yaml", "version: 1\ntags: [")),
    Row(
        "data.retrieval={method: file, path: {tmp}/ranks} stages.eval.controls=[empty]",
        "data.retrieval.path",
        "no such file",
        file("ranks/x", ""),
    ),
    Row(
        "data.retrieval={method: file, path: {tmp}/r.json} data.tasks=[LaMP_2] stages.eval.controls=[empty]",
        "data.retrieval",
        "do not name it",
        file("r.json", "{}"),
    ),
    Row("data.retrieval={method: dense, encoder: {tmp}/nowhere}", "data.retrieval.encoder", "no such folder"),
    Row(
        'stages.guided.weights=null stages.guided.reward=[{fn: "nowhere_rewards:f", weight: 1}]',
        "stages.guided.reward",
        "nowhere_rewards",
    ),
    Row(
        'stages.guided.weights=null stages.guided.reward=[{fn: "rw_syntax:f", weight: 1}]',
        "stages.guided.reward",
        "SyntaxError",
        reward_module("rw_syntax", "def f(:"),
    ),
    Row(
        'stages.guided.weights=null stages.guided.reward=[{fn: "rw_import:f", weight: 1}]',
        "stages.guided.reward",
        "nopackage_zz",
        reward_module("rw_import", "import nopackage_zz"),
    ),
    Row(
        'stages.guided.weights=null stages.guided.reward=[{fn: "rw_arguments:f", weight: 1}]',
        "stages.guided.reward",
        "raises TypeError",
        reward_module("rw_arguments", "def f(): return 0.0"),
    ),
    Row(
        'stages.guided.weights=null stages.guided.reward=[{fn: "rw_none:f", weight: 1}]',
        "stages.guided.reward",
        "on a malformed response",
        reward_module("rw_none", "def f(response): return len(response.trace.steps) / 99"),
    ),
    Row(
        'stages.guided.weights=null stages.guided.reward=[{fn: "rw_large:f", weight: 1}]',
        "stages.guided.reward",
        "in [-1, 1]",
        reward_module("rw_large", "def f(response): return 7.0"),
    ),
    # models
    Row(MODEL, "model.path", "no such folder"),
    Row(MODEL, "model.path", "empty", lambda tmp: (tmp / "model").mkdir()),
    Row(MODEL, "model.path", "no weights", model(files={"model.safetensors": None})),
    Row(MODEL, "model.path", "bytes are there", model(cut=20)),
    Row(MODEL, "model.path", "not a safetensors file", model(files={"model.safetensors": "<html>" + "x" * 99})),
    Row(MODEL, "model.path", "Git LFS", model(files={"model.safetensors": "version https://git-lfs.github.com/" * 5})),
    Row(MODEL, "model.path", "NaN or infinite weights in model.norm.weight", model(value=np.nan)),
    Row(MODEL, "model.path", "NaN or infinite", model(value=-np.inf)),
    Row(
        MODEL,
        "model.path",
        "a-2.safetensors",
        model(files={"model.safetensors.index.json": '{"weight_map": {"a": "a-2.safetensors"}}'}),
    ),
    Row(MODEL, "model.path", "cannot be read", model(files={"config.json": "{"})),
    Row(MODEL, "model.path", "no tokenizer", model(files={"tokenizer.json": None})),
    Row(MODEL, "model.path", "no tokenizer_config.json", model(files={"tokenizer_config.json": None})),
    Row(MODEL, "model.path", "not a tokenizer", model(files={"tokenizer.json": '{"model": {}}'})),
    Row(MODEL, "model.path", "ids up to 11", model(vocabulary=12)),
    Row(MODEL, "model.path", "10 rows", model({"vocab_size": 20})),
    Row(MODEL, "model.path", "weights are missing", model({"num_hidden_layers": 3})),
    Row(MODEL, "model.path", "(10, 8) in place of (10, 16)", model({"hidden_size": 16})),
    Row(MODEL, "model.path", "vLLM cannot write text", model({"architectures": ["OwnForCausalLM"]})),
    Row(MODEL, "model.path", "unknown to the installed transformers", model({"model_type": "own"})),
    Row(MODEL, "model.path", "code from the folder", model({"model_type": "own", "auto_map": {"AutoConfig": "own.C"}})),
    Row(MODEL, "model.path", "tokenizer_config.json (auto_map)", model(tokenizer_config={"auto_map": {"A": "own.T"}})),
    Row(MODEL, "model.path", "Python code", model(files={"modeling_own.py": ""}), warning=True),
    Row(MODEL, "model.path", "quantized (gptq)", model({"quantization_config": {"quant_method": "gptq"}})),
    Row(MODEL, "model.path", "adapter", model(files={"model.safetensors": None, "adapter_config.json": "{}"})),
    Row(MODEL + " data.prompt.max_tokens=4000", "model.path", "2048 positions", model()),
    Row("stages.prmu.backbone={tmp}/nowhere", "stages.prmu.backbone", "no such folder"),
    Row("stages.prmu.backbone={tmp}/model", "stages.prmu.backbone", "NaN", model(value=np.nan)),
    Row(
        "stages.prmu.backbone={tmp}/model",
        "stages.prmu.backbone",
        "512 positions",
        model({"max_position_embeddings": 512}),
    ),
    Row("model.chat_template={tmp}/nowhere", "model.chat_template", "no such file"),
    Row(MODEL, "model.path", "only zeros in model.layers.1.mlp.up_proj.weight", model(tail=0.0)),
    Row("model.tiny.hidden=63", "model.tiny.hidden", "heads times"),
    Row(MODEL + " data.lamp_dir=/nowhere", "model.path", "no chat template", model()),
    Row(MODEL + " model.chat_template={tmp}/nowhere", "model.path", "chat_template", model()),
    Row(MODEL, "model.path", "raises", model(tokenizer_config={"chat_template": "{{ raise_exception('no') }}"})),
    Row(
        MODEL + " model.thought_prefilled=true",
        "model.path",
        "does not open <think>",
        model(tokenizer_config={"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}),
    ),
    Row(MODEL, "model.path", "missing: lm_head.weight", model({"tie_word_embeddings": False})),
    Row(MODEL, "model.path", "no eos_token_id", model(), warning=True),
    Row(MODEL + " platform.weight_bucket_mb=1", "", "does not hold the largest tensor", model({"vocab_size": 100_000})),
    Row(MODEL + " lora.target_modules=[q_prj]", "", "q_prj", model()),
    Row("model.path=Qwen/Qwen3-32B", "model.path", "HF_HUB_OFFLINE"),
    Row("model.path=Qwen/Qwen3-32B", "stages.", "this machine has"),
    # machine
    Row("cluster.shm_gb=1 platform.weight_bucket_mb=4096", "cluster.shm_gb", "weight transfer"),
    Row("budget.host_memory_gib=0.01", "", "do not fit budget.host_memory_gib=0.01"),
    Row("cluster.memory_gb=1 data.prompt.max_tokens=4096", "", "do not fit cluster.memory_gb=1"),
    Row("model.path=Qwen/Qwen3-32B platform.device=cuda", "", "on a node's host"),
    Row("out={tmp}/file", "out", "is a file", file("file", "")),
    Row("out=/proc/x", "out", "cannot be written"),
    Row("mirror=file:///proc/x", "mirror", "cannot be written"),
    Row("mirror=nofs://bucket/x", "mirror", "no file system is called nofs"),
    Row("platform.ray_address=127.0.0.1:{port}", "", "nothing answers there"),
    Row("platform.ray_address=head", "", "not an address"),
    Row("cluster.devices_per_node=1 platform.devices_per_node=2", "cluster.devices_per_node", "on one node"),
    Row("log.wandb=online", "log.wandb", "no key"),
    Row("stages.chains.answers={tmp}", "stages.chains.answers", "a folder, not a file"),
    Row("platform.vllm_memory_mb=1", "", "vllm_memory_mb=1 holds no sequence"),
    Row("lora={rank: 8, alpha: 80000}", "lora.alpha / lora.rank", "drowns"),
    Row("from_run={run: {tmp}/nowhere}", "from_run.run", "no such folder"),
    Row("platform.threads=200", "platform.threads", "this machine has", warning=True),
    # sizes that the check itself must survive
    Row(
        "stages.guided.group_size=1000000000 stages.guided.micro_batch_size=8",
        "stages.guided.prompts_per_step",
        "one step",
    ),
    Row("stages.guided.steps=1000000000000", "stages.guided.steps", "no lifetime"),
    Row("stages.sft.steps=99999999999999999999", "", "too large a number"),
    Row("model.tiny.max_vocab=1000000000", "model.tiny", "one process's memory"),
    Row("model.tiny.layers=1000000000", "model.tiny", "one process's memory"),
    Row(
        "data.world.train_users=90000 data.world.questions_per_user=400000",
        "data.world.questions_per_user",
        "no memory",
    ),
    Row("data.prompt.max_tokens=1000000000000", "data.prompt.max_tokens", "longer than any model"),
    Row("stages.chains.samples=1000000000", "stages.chains.samples", "repeat each other"),
    Row("stages.prmu.policy_samples=1000000000", "stages.prmu.policy_samples", "repeat each other"),
    Row("placement.prmu_serving.cache_mb=1e12", "placement.prmu_serving.cache_mb", "this machine has"),
    Row("platform.vllm_memory_mb=100000000", "platform.vllm_memory_mb", "this machine has"),
]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The developer's own keys and proxies do not count."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "NETRC",
        "CUDA_VISIBLE_DEVICES",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when another test imported it


WORLD = ("data.world={seed: 1, train_users: 12, held_out_users: 2, time_users: 2, questions_per_user: 8}",)


def found(tmp: Path, overrides: list[str], recipe: Path = SMOKE) -> list[Finding]:
    out = () if any(text.startswith("out=") for text in overrides) else (f"out={tmp}/runs",)
    small = () if any(text.startswith("data.world") for text in overrides) or recipe != SMOKE else WORLD
    try:
        loaded = load_recipe(recipe, (*small, *overrides, *out))
    except TagprError as error:  # what the recipe alone tells is refused when it is read
        return [Finding("", None, str(error))]
    return examine(planned(loaded, RunDir(loaded.out / loaded.name)))


def split(text: str, tmp: Path) -> list[str]:
    """The overrides of a row; a value may hold spaces."""
    filled = text.replace("{tmp}", str(tmp)).replace("{port}", str(closed_port()))
    parts: list[str] = []
    for word in filled.split(" "):
        if "=" in word and word.partition("=")[0].replace(".", "").replace("_", "").isalnum():
            parts.append(word)
        else:
            parts[-1] += f" {word}"
    return parts


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.overrides[:50]} {row.words[:20]}" for row in ROWS])
def test_it_is_found(row: Row, tmp_path: Path) -> None:
    if row.make is not None:
        row.make(tmp_path)
    findings = found(tmp_path, split(row.overrides, tmp_path))
    hits = [finding for finding in findings if finding.key.startswith(row.key) and row.words in str(finding)]
    assert hits, "\n".join(map(str, findings)) or "nothing was found"
    assert {finding.warning for finding in hits} == {row.warning}


def test_the_recipes_that_are_shipped_have_no_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a machine that is not theirs, what is missing there is a warning that says so."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path in sorted(RECIPES.rglob("*.yaml")):
        if path.parent.name != "sweeps":
            loaded = load_recipe(path, (f"out={tmp_path}",))
            started = time.monotonic()
            own = loaded.platform.device == "cpu" and loaded.data.lamp_dir is None  # else it wants files of its user
            findings = examine(planned(loaded, RunDir(tmp_path / loaded.name)), here=own)
            assert [str(finding) for finding in findings if not finding.warning] == [], path
            assert all(finding.on_machine for finding in findings), path
            assert time.monotonic() - started < 30


def test_all_mistakes_are_said_at_once_and_nothing_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[object] = []
    module = types.ModuleType("tagpr_rl.stages.pipeline")
    module.run_pipeline = lambda *args, **options: calls.append(args)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tagpr_rl.stages.pipeline", module)
    wrong = [
        *("stages.sft.lr=10", "stages.guided.betas=[0.9, 1.0]", "schema_file=/nowhere.yaml", "log.wandb=online"),
        *("stages.eval.temperature=2", f"out={tmp_path}", *WORLD),
    ]
    for command in ("plan", "run"):
        assert main([command, str(SMOKE), *wrong]) == 2
        shown = capsys.readouterr()
        for part in ("the plan has 4 mistake(s)", "sft.lr=10", "guided.betas", "/nowhere.yaml", "WANDB_API_KEY"):
            assert part in shown.err
        assert "warning: stages.eval.temperature=2: unusual" in shown.out + shown.err
    assert calls == [] and list(tmp_path.iterdir()) == []
    assert main(["plan", str(SMOKE), f"out={tmp_path}", "stages.eval.temperature=2", *WORLD]) == 0
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("fits: ")
    assert main(["run", str(SMOKE), f"out={tmp_path}", "stages.eval.temperature=2", *WORLD]) == 0
    assert len(calls) == 1


def test_fresh_deletes_nothing_when_the_plan_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "resolved.json").write_text("{}")
    assert main(["run", str(SMOKE), "--fresh", f"out={tmp_path}", "stages.sft.lr=10", *WORLD]) == 2
    assert (tmp_path / "smoke" / "resolved.json").is_file()


def test_a_sweep_is_looked_at_before_its_first_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = str(RECIPES / "sweeps" / "ablations.yaml")
    assert main(["sweep", sweep, "--dry-run", "stages.sft.lr=10", "data.limit=40", f"out={tmp_path}"]) == 2
    assert "stages.sft.lr=10" in capsys.readouterr().err


def test_a_gpu_recipe_names_the_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = RECIPES / "lamp" / "qwen3_8b.yaml"
    monkeypatch.setattr(machine, "device_count", lambda environment: 0)
    assert any("no CUDA device" in str(finding) for finding in found(tmp_path, [], recipe))
    monkeypatch.setattr(machine, "device_count", lambda environment: 8)
    assert not any("device" in finding.key for finding in found(tmp_path, [], recipe))
    more = ["placement.prmu=dedicated", "placement.prmu_serving.scorers=2"]
    assert any("10 devices are asked (policy 8, PRMU 2)" in str(finding) for finding in found(tmp_path, more, recipe))


@pytest.mark.parametrize(
    "overrides, key, words",
    [
        ("data.prompt.max_tokens=50000 training.max_tokens_per_device=60000", "model.path", "40960 positions"),
        (
            "placement.tensor_parallel=3 platform.devices_per_node=3 stages.chains.teacher.tensor_parallel=3 "
            "stages.chains.labeller.tensor_parallel=3",
            "placement.tensor_parallel",
            "32 attention heads",
        ),
        ("platform.vllm_gpu_utilization=0.01", "platform.vllm_gpu_utilization", "no room"),
        ("training.attention=flash_attention_2", "", "flash_attn is not installed"),
        ("placement.prmu=dedicated stages.guided.weights.beta=0", "placement.prmu", "idle"),
    ],
)
def test_of_a_gpu_recipe(overrides: str, key: str, words: str, tmp_path: Path) -> None:
    findings = found(tmp_path, overrides.split(), RECIPES / "lamp" / "qwen3_8b.yaml")
    assert any(finding.key == key and words in str(finding) for finding in findings), "\n".join(map(str, findings))


@pytest.mark.parametrize("key", ["placement.prmu_serving.scorers", "platform.nodes", "platform.devices_per_node"])
def test_a_number_of_machines_that_would_fill_the_memory_is_refused(key: str) -> None:
    with pytest.raises(TagprError, match=key.replace(".", r"\.")):
        load_recipe(SMOKE, (f"{key}=1000000000",))


def test_what_is_here_and_damaged_is_a_mistake_for_a_run_elsewhere(tmp_path: Path) -> None:
    model(value=np.nan)(tmp_path)
    cuda = load_recipe(SMOKE, (f"model.path={tmp_path}/model", "platform.device=cuda", "data.lamp_dir=/nowhere"))
    findings = examine(planned(cuda, RunDir(tmp_path / "run")), here=False)
    mistakes = [str(finding) for finding in findings if not finding.warning]
    assert any("NaN or infinite" in text for text in mistakes)
    assert not any("no such folder" in text for text in mistakes)  # the other machine may have it


def test_a_run_that_joins_a_cluster_starts_here(tmp_path: Path) -> None:
    joined = load_recipe(SMOKE, (f"platform.ray_address=127.0.0.1:{closed_port()}", f"out={tmp_path}"))
    assert machine.runs_here(planned(joined, RunDir(tmp_path / "run")))


def test_stages_that_cannot_be_taken_from_another_run_are_named(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "resolved.json").write_text(json.dumps(dump_recipe(load_recipe(SMOKE, ()))))
    findings = found(tmp_path, ["name=new", f"from_run={{run: {other}, until: data}}"])
    assert any(f.key == "from_run.until" and "not finished a stage" in f.wrong for f in findings)
