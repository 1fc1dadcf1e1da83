"""The sharded table of users, its cache, and a PRMU that reads it: every row found, unknown ids unknown. By hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tagpr_rl.prmu.serving.cache import ArrayCache
from tagpr_rl.prmu.users import table as users_table
from tagpr_rl.prmu.users.table import ShardedUsers, hash_ids, shard_of, shard_users, write_table
from tagpr_rl.types import TagprError

IDS = [f"user-{i}" for i in range(1000)]
ROWS = np.arange(1000 * 3, dtype=np.float32).reshape(1000, 3) / 8  # exact in float16 below 256


def table(folder: Path, ids: list[str] = IDS, **settings: object) -> ShardedUsers:
    write_table(folder, lambda: ids, lambda at: ROWS[at], **settings)  # type: ignore[arg-type]
    return ShardedUsers(folder)


def test_the_format_of_tables_on_disk_keeps_its_name() -> None:
    """Tables of earlier releases have this name, and their rows exist nowhere else."""
    assert users_table.FORMAT == "tagpr_rl.prmu.users/1"


@pytest.mark.parametrize("shards", [1, 7, 64])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_user_has_the_own_row_and_nobody_else_has_one(tmp_path: Path, shards: int, dtype: str) -> None:
    users = table(tmp_path, shards=shards, dtype=dtype)
    assert len(users) == 1000 and len(list(tmp_path.glob("*.safetensors"))) == shards
    rows = users.rows(IDS)
    assert sorted(rows) == list(range(1, 1001))
    expected = ROWS.astype(dtype).astype(np.float32)
    assert np.array_equal(users.vectors(np.array(rows)), expected)
    assert users.rows(["user-1000", "", "\U0001f9e2", "\ud83d"]) == [0, 0, 0, 0]
    mixed = np.array([0, *users.rows(["user-5", "user-5", "nobody"])])
    assert np.array_equal(users.vectors(mixed), [[0] * 3, expected[5], expected[5], [0] * 3])
    assert users.rows([]) == [] and users.vectors(np.zeros(0, np.int64)).shape == (0, 3)
    with pytest.raises(TagprError, match="row 1001 of 1000"):
        users.vectors(np.array([1001]))


def test_the_hash_is_blake2b_and_shards_are_equal_ranges() -> None:
    digest = hashlib.blake2b(b"user-5", digest_size=8, salt=bytes([2] + [0] * 7)).digest()
    assert hash_ids(["user-5"], salt=2).tolist() == [int.from_bytes(digest, "little")]
    assert shard_of(np.array([0, 2**63 - 1, 2**63, 2**64 - 1], np.uint64), 2).tolist() == [0, 0, 1, 1]
    assert shard_of(np.array([2**64 - 1], np.uint64), 3).tolist() == [2]


def test_a_user_that_is_there_twice_is_named_and_a_shared_hash_takes_another_salt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TagprError, match="the id 'user-7' is repeated"):
        table(tmp_path, [*IDS[:500], "user-7"])
    whole = users_table.hash_ids
    monkeypatch.setattr(users_table, "hash_ids", lambda ids, salt=0: whole(ids, salt) // (2**61 if not salt else 1))
    users = table(tmp_path / "salted")
    assert json.loads((tmp_path / "salted" / "index.json").read_text())["salt"] == 1
    assert sorted(users.rows(IDS)) == list(range(1, 1001))


def test_bad_rows_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TagprError, match="row 3 is not finite in float16; use float32"):
        write_table(tmp_path, lambda: IDS[:5], lambda at: np.where(at[:, None] == 3, 1e6, 1.0))
    with pytest.raises(TagprError, match=r"index\.json: not a table of users"):
        ShardedUsers(tmp_path)
    table(tmp_path, shards=2)
    (tmp_path / "00001.safetensors").write_bytes((tmp_path / "00001.safetensors").read_bytes()[:-1])
    with pytest.raises(TagprError, match=r"00001\.safetensors: damaged or missing"):
        ShardedUsers(tmp_path)
    table(tmp_path, shards=2)
    (tmp_path / "00000.safetensors").write_bytes((tmp_path / "00001.safetensors").read_bytes())
    with pytest.raises(TagprError, match=r"00000\.safetensors: holds .*the index says"):
        ShardedUsers(tmp_path)


def test_the_cache_keeps_what_was_used_last_within_both_bounds() -> None:
    cache: ArrayCache[np.ndarray] = ArrayCache(3, 100)
    for name in "abc":
        cache.put(name, np.zeros(3))  # 24 bytes
    assert cache.get("a") is not None and (len(cache), cache.nbytes) == (3, 72)
    cache.put("d", np.zeros(3))
    assert cache.get("b") is None and len(cache) == 3  # "a" was used after it
    cache.put("e", np.zeros(6))  # 48: a, c, d are 72 and one must go by number, then by bytes 24 + 24 + 48 = 96 fits
    assert cache.get("c") is None and (len(cache), cache.nbytes) == (3, 96)
    cache.put("e", np.zeros(3))
    assert cache.nbytes == 72
    cache.put("f", np.zeros(100))
    assert (len(cache), cache.nbytes) == (0, 0)


@pytest.mark.torch
def test_a_prmu_scores_the_same_from_a_sharded_table(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import torch
    from prmu_toy import toy_backbone

    from tagpr_rl.prmu.model import PrmuModel, PrmuModelConfig, new_model
    from tagpr_rl.prmu.serving.requests import ScoreRequest
    from tagpr_rl.prmu.serving.score import Scorer
    from tagpr_rl.prmu.users.vectors import UserTable

    torch.manual_seed(0)
    model, encoder = new_model(toy_backbone(tmp_path / "backbone"), PrmuModelConfig(), UserTable(["u0", "u1", "u2"]))
    identity = model.users.identity
    assert isinstance(identity, torch.nn.Embedding)
    identity.weight.data[1:] = torch.randn(3, identity.weight.shape[1]).half().float()
    folder = tmp_path / "prmu"
    model.save_pretrained(folder, encoder.tokenizer)
    asks = [ScoreRequest(user, ("i like a red hat",), "which hat", "take the red one") for user in ("u0", "u2", "new")]
    before = Scorer(folder).raw(asks)
    assert len({round(score, 4) for score in before}) == 3
    shard_users(folder, shards=2)
    assert sorted(path.name for path in (folder / "users").iterdir()) == [
        "00000.safetensors", "00001.safetensors", "index.json"
    ]  # fmt: skip
    assert Scorer(folder).raw(asks) == pytest.approx(before, abs=1e-6)
    sharded, _ = PrmuModel.from_pretrained(folder)
    assert "users.identity.weight" not in sharded.state_dict() and len(sharded.table) == 3
    with pytest.raises(TagprError, match="copy the whole folder"):
        sharded.save_pretrained(tmp_path / "again", encoder.tokenizer)


@pytest.mark.torch
def test_the_scorer_s_cache_is_bounded_in_bytes_and_belongs_to_the_weights(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import torch
    from prmu_toy import toy_backbone

    from tagpr_rl.prmu.model import PrmuModelConfig, new_model
    from tagpr_rl.prmu.serving.requests import ScoreRequest
    from tagpr_rl.prmu.serving.score import Scorer
    from tagpr_rl.prmu.users.vectors import UserTable

    model, encoder = new_model(toy_backbone(tmp_path / "backbone"), PrmuModelConfig(), UserTable())
    scorer = Scorer.of(model.eval(), encoder)
    asks = [ScoreRequest("u", (f"i like a {colour} hat",), "which hat", "take the red one")
            for colour in ("red", "green", "blue")]  # fmt: skip
    first = scorer.raw(asks)
    # 3 items of 5 words and eos, states of 2 * 32 numbers of 4 bytes
    assert scorer.cached == (3, 3 * 6 * 64 * 4)
    with torch.no_grad():
        model.layer_mix += torch.tensor([0.0, 5.0, 0.0])
    changed = scorer.raw(asks)
    assert changed != pytest.approx(first, abs=1e-4)
    assert changed == pytest.approx(Scorer.of(model, encoder).raw(asks), abs=1e-6)  # no state of the old weights
    model.save_pretrained(tmp_path / "prmu", encoder.tokenizer)
    small = Scorer(tmp_path / "prmu", cache_mb=2 * 6 * 64 * 4 / (1 << 20))
    assert small.raw(asks) == pytest.approx(changed, abs=1e-5) and small.cached == (2, 2 * 6 * 64 * 4)
