"""PRMU's model, loss and scorer: the user's term, padding, saving."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from prmu_toy import toy_backbone, toy_pairs

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from tagpr_rl.prmu.accuracy import own  # noqa: E402
from tagpr_rl.prmu.inputs import NOTHING, ROWS, TEXT, USERS, Limits, TextEncoder, collate  # noqa: E402
from tagpr_rl.prmu.model import PrmuModel, PrmuModelConfig, gather_items, new_model  # noqa: E402
from tagpr_rl.prmu.serving.requests import UNKNOWN_USER, ScoreRequest  # noqa: E402
from tagpr_rl.prmu.serving.score import Scorer, micro_batches  # noqa: E402
from tagpr_rl.prmu.training.step import pair_loss  # noqa: E402
from tagpr_rl.prmu.users.vectors import UserEncoder, UserTable, drop_users, with_item_mean, with_window_mean  # noqa: E402
from tagpr_rl.types import TagprError  # noqa: E402

ASK = ScoreRequest("u1", ("i like a red hat", "i like a red coat"), "which hat", "take the red one")


def randomised(model: PrmuModel) -> PrmuModel:
    """Give every parameter of PRMU's own a value, so that no term is zero by its start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("backbone."):
                parameter.add_(0.2 * torch.randn_like(parameter))
        if model.users.identity is not None:
            model.users.identity.weight[0] = 0
    return model


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def scorer(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = tmp_path_factory.mktemp("prmu")
    model, encoder = new_model(backbone, PrmuModelConfig(), UserTable(["u0", "u1"]))
    randomised(model).save_pretrained(folder, encoder.tokenizer)
    return Scorer(folder)


def test_a_backbone_in_bfloat16_gives_nearly_the_scores_of_float32(backbone: Path, tmp_path: Path) -> None:
    request = ScoreRequest("u0", ("an item text", "another item"), "a question", "a response of some words")
    scores = {}
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model, encoder = new_model(backbone, PrmuModelConfig(dtype=dtype), UserTable(["u0", "u1"]))
        randomised(model).save_pretrained(tmp_path / dtype, encoder.tokenizer)
        scorer = Scorer(tmp_path / dtype)
        assert scorer.model.config.dtype == dtype
        assert all(weight.dtype == torch.float32 for weight in scorer.model.parameters())
        (scores[dtype],) = scorer.score([request])
    assert scores["float32"] != scores["bfloat16"]
    assert scores["bfloat16"] == pytest.approx(scores["float32"], abs=0.02)
    with pytest.raises(TagprError, match="dtype is 'float16'"):
        PrmuModelConfig(dtype="float16")


def test_loss_by_hand() -> None:
    # -log sigmoid(2) = log(1 + e^-2) = 0.1269280; -log sigmoid(0) = log 2 = 0.6931472; (2 + 0)^2 = 4
    # 0.8 * 0.1269280 + 0.2 * 0.6931472 + 0.01 * 4 = 0.2801718
    two, zero = torch.tensor([2.0]), torch.tensor([0.0])
    loss = pair_loss(two, zero, zero, zero, individual_weight=0.8, centre=0.01)
    assert float(loss.individual) == pytest.approx(0.1269280, abs=1e-6)
    assert float(loss.generic) == pytest.approx(0.6931472, abs=1e-6)
    assert float(loss.centre) == pytest.approx(4.0)
    assert float(loss.total) == pytest.approx(0.2801718, abs=1e-6)


def test_loss_gradient_by_hand() -> None:
    # d/ds_c of -log sigmoid(s_c - s_r) is -sigmoid(s_r - s_c) = -0.5 at a tie; centring adds 2 c (s_c + s_r)
    chosen, rejected = torch.tensor([1.0], requires_grad=True), torch.tensor([1.0])
    pair_loss(chosen, rejected, rejected, rejected, individual_weight=1.0, centre=0.1).total.backward()
    assert chosen.grad is not None
    assert float(chosen.grad) == pytest.approx(-0.5 + 0.4)


def test_the_empty_profile_is_e_0_exactly() -> None:
    users = UserEncoder(8, 2, n_known=1)
    torch.nn.init.normal_(users.e_0)
    torch.nn.init.normal_(users.null_key)
    items, nothing = torch.randn(1, 3, 8), torch.zeros(1, 3, dtype=torch.bool)
    out = users(torch.randn(1, 4, 8), items, nothing, torch.tensor([0]))
    assert torch.equal(out, users.e_0.expand(1, 4, 8))


def test_attention_by_hand() -> None:
    # One head, identity weights, SHARPNESS 12: logits 12 * mean(q * k) = 12 * (1, 0) / 2 = (6, 0), null key 0.
    # softmax of (null 0, 6, 0): e^6 / (e^6 + 2) on the first item.
    users = UserEncoder(2, 1)
    items, mask = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.ones(1, 2, dtype=torch.bool)
    out = users.attend(torch.tensor([[[1.0, 0.0]]]), items, mask)[0, 0]
    total = math.exp(6) + 2
    assert out.tolist() == pytest.approx([math.exp(6) / total, 1 / total], abs=1e-6)


def test_window_and_item_means_by_hand() -> None:
    states = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [4.0, 0.0]]])
    # means of the last 2 (zeros before the start): (1, 0), (1, 1), (2, 1); normalised: (1, -1), (0, 0), (1, -1)
    got = with_window_mean(states, 2)[0, :, 2:]
    assert torch.allclose(got, torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, -1.0]]), atol=1e-4)
    # the third token is padding: mean (1, 1)
    got = with_item_mean(states, torch.tensor([[True, True, False]]))[0, :, 2:]
    assert torch.allclose(got, torch.zeros(3, 2), atol=1e-4)


def test_user_dropout_makes_users_unknown() -> None:
    known = torch.arange(1, 2001)
    draws = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    dropped = drop_users(known, 0.3, draws)
    assert torch.equal(dropped == 0, draws < 0.3)
    assert set((dropped - known)[dropped != known].add(known[dropped != known]).tolist()) == {0}
    assert 0.26 < float((dropped == 0).float().mean()) < 0.34
    assert torch.equal(drop_users(known, 0.0, draws), known)
    assert torch.equal(drop_users(known, 1.0, draws), torch.zeros_like(known))


def test_dropped_users_train_e_0_and_not_their_row(backbone: Path) -> None:
    rows = toy_pairs(users=2, per_user=1)
    model, encoder = new_model(backbone, PrmuModelConfig(), UserTable(["u0", "u1"]))
    randomised(model)
    for dropped in (False, True):
        batch = collate(encoder, [r for p in rows for r in own(p)], [0, 0, 1, 1], [1, 2])
        batch.known = drop_users(batch.known, float(dropped), torch.rand(2))
        model.zero_grad()
        model(batch)[0].sum().backward()
        assert model.users.identity is not None
        grad = model.users.identity.weight.grad
        assert grad is not None
        assert bool(grad.abs().sum() > 0) is not dropped
        assert model.users.e_0.grad is not None
        assert float(model.users.e_0.grad.abs().sum()) > 0


def test_user_terms(scorer: Scorer) -> None:
    known, stranger, generic = scorer.raw([ASK, replace(ASK, user_id="never seen"), ASK.generic()])
    bare = replace(ASK, user_id="never seen", profile_texts=())
    assert len({round(x, 4) for x in (known, stranger, generic)}) == 3
    assert scorer.raw([bare])[0] == pytest.approx(generic, abs=1e-5)
    assert scorer.raw([replace(ASK, user_id=UNKNOWN_USER)])[0] == pytest.approx(stranger, abs=1e-5)
    assert scorer.raw([replace(ASK, profile_texts=("",))])[0] != pytest.approx(stranger)


def test_generic_scores_of_the_model_are_the_scorer_s(scorer: Scorer) -> None:
    batch = collate(scorer.encoder, [ASK], [0], scorer.model.table.rows(["u1"]))
    with torch.inference_mode():
        user, generic = scorer.model(batch)
    assert float(user) == pytest.approx(scorer.raw([ASK])[0], abs=1e-5)
    assert float(generic) == pytest.approx(scorer.raw([ASK.generic()])[0], abs=1e-5)


def test_user_interacts_with_the_response(scorer: Scorer) -> None:
    other = replace(ASK, profile_texts=("i like a blue hat",))
    red, blue = "take the red one", "take the blue one"
    scores = scorer.raw([replace(r, response=text) for r in (ASK, other) for text in (red, blue)])
    assert abs((scores[0] - scores[1]) - (scores[2] - scores[3])) > 1e-3


def test_scores_do_not_depend_on_the_batch(scorer: Scorer) -> None:
    rng = random.Random(0)
    asks = [request for pair in toy_pairs(users=10) for request in own(pair)]
    asks += [replace(r, response=r.response + " take" * i, profile_texts=r.profile_texts * (i % 4))
             for i, r in enumerate(asks[:12])]  # fmt: skip
    together = scorer.raw(asks)
    order = list(range(len(asks)))
    rng.shuffle(order)
    small = Scorer(scorer.path, max_padded_tokens=40, cached_items=2)
    for i, value in zip(order, small.raw([asks[i] for i in order]), strict=True):
        assert value == pytest.approx(together[i], abs=1e-5)
    assert len(small._cache) == 2
    assert scorer.raw(asks) == together  # from the cache


def test_a_batch_scored_afresh_takes_no_item_states_from_earlier_ones(scorer: Scorer) -> None:
    """These round by the batch in which they were computed. Here they are wrong, to be seen."""
    mine = Scorer(scorer.path)
    expected, raw = mine.score([ASK]), mine.raw([ASK])
    for item, states in list(mine._cache._entries.items()):
        mine._cache.put(item, torch.zeros_like(states))
    assert abs(mine.raw([ASK])[0] - raw[0]) > 1e-3
    assert mine.score_afresh([ASK]) == expected


def test_the_gradient_of_items_that_users_share_is_the_same_every_time() -> None:
    """torch adds up the gradient of `states[index]` with two threads in another order each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    states = torch.randn(120, 24, 64, requires_grad=True)
    mask, profile = torch.ones(120, 24, dtype=torch.bool), torch.randint(0, 120, (16, 16))
    weight = torch.randn(16, 16 * 24, 64)
    gradients = []
    for _ in range(20):
        states.grad = None
        (gather_items(states, mask, profile)[0] * weight).sum().backward()
        gradients.append(states.grad)
    torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_save_and_load_are_equal(scorer: Scorer, tmp_path: Path) -> None:
    scorer.model.save_pretrained(tmp_path, scorer.encoder.tokenizer)
    model, encoder = PrmuModel.from_pretrained(tmp_path)
    assert model.config == scorer.model.config
    assert model.table.ids == ("u0", "u1")
    state = scorer.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert encoder.response("which hat", "take") == scorer.encoder.response("which hat", "take")
    assert Scorer(tmp_path).score([ASK]) == scorer.score([ASK])
    names = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert not names & {".pt", ".pkl", ".bin", ".pth"}


def test_a_damaged_folder_is_named(scorer: Scorer, tmp_path: Path) -> None:
    with pytest.raises(TagprError, match="not a PRMU folder"):
        Scorer(tmp_path)
    scorer.model.save_pretrained(tmp_path, scorer.encoder.tokenizer)
    (tmp_path / "users.json").write_text('["one too few"]')
    with pytest.raises(TagprError, match=r"model\.safetensors.*train PRMU again"):
        Scorer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(TagprError, match=r"model\.safetensors.*train PRMU again"):
        Scorer(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(TagprError, match=r"config\.json: format"):
        Scorer(tmp_path)


def test_score_is_the_normalised_sigmoid_and_never_nan(scorer: Scorer, tmp_path: Path) -> None:
    config = scorer.model.config
    raw = scorer.raw([ASK])[0]
    try:
        scorer.model.config = replace(config, score_mean=raw - 2.0, score_std=2.0)
        assert scorer.score([ASK])[0] == pytest.approx(1 / (1 + math.exp(-1)))  # (raw - (raw - 2)) / 2 = 1
        scorer.model.config = replace(config, score_mean=raw + 1e6, score_std=1e-3)
        assert scorer.score([ASK]) == [0.0]
        scorer.model.head.bias.data += math.nan
        with pytest.raises(FloatingPointError, match="user 'u1'"):
            scorer.score([ASK])
    finally:
        scorer.model.config = config
        scorer.model.head.bias.data.fill_(0.1)


def test_long_texts_keep_the_response(backbone: Path) -> None:
    _, encoder = new_model(backbone, PrmuModelConfig(limits=Limits(8, 1, 3)), UserTable())
    assert isinstance(encoder, TextEncoder)
    ids = {word: encoder.tokenizer(word)["input_ids"][0] for word in ("hat", "coat", "red", "one")}
    row = encoder.response("coat coat hat coat", "red red one")
    # 8 = 3 of the question's end + eos + 3 of the response + eos
    assert row.ids == (
        ids["coat"], ids["hat"], ids["coat"], encoder.eos, ids["red"], ids["red"], ids["one"], encoder.eos
    )  # fmt: skip
    assert row.start == 4
    assert encoder.response("hat", "red " * 9).ids == (encoder.eos, *[ids["red"]] * 6, encoder.eos)
    assert encoder.items(["red red red", "hat"]) == [(ids["red"], ids["red"], encoder.eos)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_micro_batches_hold_every_row_once(lengths: list[int], most: int) -> None:
    batches = micro_batches(lengths, most)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most


@pytest.fixture(scope="module")
def baselines(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scorer]:
    """A saved and loaded PRMU for each way to look for the user."""
    actual = {}
    for user in USERS:
        folder = tmp_path_factory.mktemp(user)
        table = UserTable([] if user in (TEXT, NOTHING) else ["u0", "u1"])
        model, encoder = new_model(backbone, PrmuModelConfig(user=user), table)
        randomised(model).save_pretrained(folder, encoder.tokenizer)
        actual[user] = Scorer(folder)
    return actual


def test_baselines_read_what_they_may(baselines: dict[str, Scorer]) -> None:
    other_profile = replace(ASK, profile_texts=("i like a blue hat",))
    other_user = replace(ASK, user_id="u0")
    reads = {}
    for user, scorer in baselines.items():
        own, profile, table, nobody = scorer.raw([ASK, other_profile, other_user, ASK.generic()])
        reads[user] = (abs(own - profile) > 1e-4, abs(own - table) > 1e-4)
        assert (own == nobody) is (user == NOTHING)
    assert reads == {"attention": (True, True), ROWS: (False, True), TEXT: (True, False), NOTHING: (False, False)}


def test_the_profile_stands_before_the_question_in_the_text_baseline(baselines: dict[str, Scorer]) -> None:
    encoder = baselines[TEXT].encoder
    plain = encoder.response(ASK.question, ASK.response)
    row = encoder.row(ASK)
    items = encoder.items(ASK.profile_texts)
    assert row.ids == (*items[1], *items[0], *plain.ids)
    assert row.start == plain.start + sum(map(len, items))
    short = TextEncoder(encoder.tokenizer, Limits(max_tokens=len(plain.ids) + len(items[0]) + 1), TEXT)
    assert short.row(ASK).ids == (*items[0], *plain.ids)  # whole items, while there is room
    assert encoder.row(ASK.generic()) == plain


@pytest.mark.parametrize("user", USERS)
def test_any_user_and_profile_is_scored_by_the_stated_rule(baselines: dict[str, Scorer], user: str) -> None:
    scorer = baselines[user]
    many = tuple(f"i like a grey {'coat' if i % 2 else 'scarf'}" for i in range(10_000))
    huge = "red hat " * 12_500  # 100 kB
    strange = ("\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467", "\ud83d", "\x00", " ", "\u202e red")
    asks = [
        replace(ASK, user_id="never seen"),
        replace(ASK, user_id="\U0001f600"),
        replace(ASK, profile_texts=()),
        replace(ASK, profile_texts=many),
        replace(ASK, profile_texts=(huge, huge)),
        replace(ASK, profile_texts=strange),
        replace(ASK, question=huge, response=huge),
        replace(ASK, question="", response=""),
        replace(ASK, response="\ud83d\ude00 \udc00"),
    ]
    assert all(0 <= score <= 1 for score in scorer.score(asks))
    with pytest.raises(TagprError, match="profile_texts"):
        scorer.score([replace(ASK, profile_texts=(None,))])  # type: ignore[arg-type]


def test_long_profiles_are_cut_to_what_is_nearest_to_the_question(baselines: dict[str, Scorer]) -> None:
    scorer = baselines["attention"]
    near = ("which hat i like", "which red hat")
    far = tuple(f"i like a grey {'coat' if i % 2 else 'scarf'} {i}" for i in range(10_000))
    mixed = (*far[:5000], near[0], *far[5000:], near[1])
    encoder = TextEncoder(scorer.encoder.tokenizer, Limits(max_items=2))
    assert encoder.items(mixed, "which hat") == [encoder.item(near[0]), encoder.item(near[1])]
    assert encoder.items(far[:2], "which hat") == [encoder.item(text) for text in far[:2]]
    # an item is its first tokens: what follows 127 of them changes nothing
    words = "red hat " * 100
    assert encoder.item(words) == encoder.item(words + "blue")
    assert len(encoder.item(words)) == encoder.limits.max_item_tokens


def test_a_folder_of_another_format_is_refused(scorer: Scorer, tmp_path: Path) -> None:
    scorer.model.save_pretrained(tmp_path, scorer.encoder.tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": "tagpr_rl.prmu/1"}))
    with pytest.raises(TagprError, match=r"format is not 'tagpr_rl\.prmu/2'; train PRMU again"):
        Scorer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"interaction": "pooled"}))
    with pytest.raises(TagprError, match="interaction is not 'token'; train PRMU again"):
        PrmuModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"user": "table"}))
    with pytest.raises(TagprError, match="user is 'table'"):
        Scorer(tmp_path)
