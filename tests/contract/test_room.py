"""A run that asks for more devices than there are, or than are free, ends with one error that names them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from tagpr_rl.backend.session import room  # noqa: E402
from tagpr_rl.types import TagprError  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = """
from pathlib import Path
from tagpr_rl.backend.session.ray_session import ray_session
from tagpr_rl.config import load_recipe
from tagpr_rl.types import TagprError
try:
    with ray_session(load_recipe(Path("recipes/lamp/qwen3_8b_4nodes.yaml"), ["data.lamp_dir=/nowhere"])):
        print("started")
except TagprError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of two devices, beside a head without any."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 40, "num_gpus": 0, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=16, num_gpus=2)
    yield nodes
    nodes.shutdown()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}


def test_four_nodes_without_an_address_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE], capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()
    assert "platform.nodes=4, platform.devices_per_node=8" in said[0]
    assert "  nodes: 4 asked, 1 alive" in said and any(line.startswith("  devices in all: 32 asked") for line in said)
    assert "name a Ray cluster there" in said[-1]


def test_of_two_runs_that_each_hold_half_the_older_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "support" / "two_runs.py")
    runs = [
        subprocess.Popen(
            [sys.executable, script, cluster.address, *names, str(tmp_path)],
            cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for names in (("a", "b"), ("b", "a"))
    ]  # fmt: skip
    texts = [run.communicate(timeout=180) for run in runs]
    results: list[dict[str, Any]] = [json.loads(out.splitlines()[-1]) for out, _ in texts if out]
    assert len(results) == 2, texts[0][1][-2000:]
    assert len({result["outcome"] for result in results}) == 2, results
    winners = [result for result in results if result["outcome"] == "has both"]
    (loser,) = [result for result in results if result not in winners]
    assert loser["outcome"].startswith("no room in the Ray cluster: 1 + 1 devices are asked, and 0 of 4 are free")


def test_devices_are_reserved_all_or_none_and_given_back(cluster: Cluster) -> None:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    try:
        with room.reserved(2, 2) as group:
            assert group.bundle_count == 2 and room.free_devices() == 0
            with (
                pytest.raises(TagprError, match=r"1 devices are asked, and 0 of 4 are free after 1 s"),
                room.reserved(1, 1, wait_s=1),
            ):
                pass
        with room.reserved(1, 2):
            pass
        states = {entry["state"] for entry in ray.util.placement_group_table().values()}
        assert states == {"REMOVED"}
    finally:
        ray.shutdown()


def test_a_run_gives_way_to_an_older_one_and_waits_longer_for_a_younger() -> None:
    def looks(own: str, *others: str) -> int:
        table = {key: {"state": "PENDING", "bundles": {0: {"GPU": 2.0}}} for key in (own, *others)}
        pending = room.PendingGroups(own[-8:])
        for number in range(10):
            try:
                pending.judge(table, 5.0)
            except TagprError:
                return number
        return 10

    old, young = "aa" * 14 + "01000000", "bb" * 14 + "02000000"
    room_text = room._no_room
    try:
        room._no_room = lambda sizes, seconds: f"{sizes} {seconds}"  # type: ignore[assignment]
        assert looks(old, young) == looks(old) == 4 and looks(young, old) == 2 and looks(young) == 4
        pending = room.PendingGroups("01000000")
        for _ in range(9):
            pending.judge({old: {"state": "CREATED", "bundles": {}}, young: {"state": "PENDING"}}, 5.0)
    finally:
        room._no_room = room_text
