"""Scorers that share the policy's devices lie beside its workers, and nowhere else in a cluster that others use too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("ray")
pytest.importorskip("torch")
os.environ.setdefault("VERL_PLATFORM", "cpu")
pytestmark = [pytest.mark.stack, pytest.mark.torch, pytest.mark.timeout(120)]

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: E402

from tagpr_rl.backend.scoring import prmu_actor  # noqa: E402

Place = tuple[str, str]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three nodes of four devices, beside a head without any."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False})
    for _ in range(3):
        nodes.add_node(num_cpus=16, num_gpus=4)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def reporter() -> Any:
    """A kind of actor that says where it is: its node, and the devices that it sees."""

    class Reporter:
        def place(self) -> Place:
            return ray.get_runtime_context().get_node_id(), os.environ["CUDA_VISIBLE_DEVICES"]

    return ray.remote(Reporter)


def test_each_scorer_is_beside_a_worker_of_the_policy(cluster: Cluster) -> None:
    from verl.single_controller.ray.base import RayResourcePool

    # The policy has two devices on each of two nodes; the third node, and the other devices, are somebody else's.
    groups = RayResourcePool([2, 2], max_colocate_count=3).get_placement_groups()
    remote = reporter()
    workers = [  # as verl places its workers (single_controller/ray/base.py:526, :629)
        [
            remote.options(num_gpus=1 / 3, scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle)).remote()
            for bundle in range(2)
        ]
        for group in groups
    ]
    policy = [ray.get([worker.place.remote() for worker in node]) for node in workers]
    scorers = [remote.options(**prmu_actor._shared_device(number, groups)).remote() for number in range(5)]
    placed = ray.get([scorer.place.remote() for scorer in scorers])
    # One a node, from the last; then each node's second device; the fifth begins again.
    assert placed == [policy[1][0], policy[0][0], policy[1][1], policy[0][1], policy[1][0]]
    assert len(set(placed)) == 4 and len({node for node, _ in placed}) == 2
