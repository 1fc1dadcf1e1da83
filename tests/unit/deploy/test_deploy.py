"""What a run needs of a cluster, what a cluster lacks, the command that starts the run there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagpr_rl.config import Recipe, load_recipe
from tagpr_rl.deploy.need import (
    Need,
    NodeSize,
    need,
    node_cores,
    node_count,
    node_cpus,
    node_devices,
    run_command,
    shell,
    shortages,
    storage,
)
from tagpr_rl.types import TagprError

SMOKE = Path(__file__).resolve().parents[3] / "recipes" / "smoke.yaml"


def recipe(*overrides: str) -> Recipe:
    return load_recipe(SMOKE, overrides)


def test_needs_come_from_the_platform_block() -> None:
    requested = need(recipe("platform.nodes=4", "platform.devices_per_node=8"))
    # 8 devices x 3 CPUs = 24 on each of 4 nodes; 96 and 12 for the run in all
    assert requested == Need(parts=(8, 8, 8, 8), cpus=108)
    assert requested.devices == 32
    assert node_cpus(recipe("platform.devices_per_node=8")) == 36


def test_a_rollout_and_a_scorer_of_their_own_need_devices_of_their_own() -> None:
    policy = ("platform.device=cuda", "platform.nodes=2", "platform.devices_per_node=4")
    rollout = ("placement.rollout=separate", "placement.rollout_nodes=1", "placement.rollout_devices_per_node=3")
    on_policy = "stages.guided.reuse_rollout_logprobs=true"
    policy = (*policy, "stages.guided.rollout_correction=null")  # it has no use beside them
    made = recipe(*policy, *rollout, on_policy, "placement.prmu=dedicated", "placement.prmu_devices=0.5")
    # 12 CPUs for each part of 4, 9 for the 3, 3 for the half (it is scheduled like a whole one), 12 for the run
    assert need(made) == Need(parts=(4, 4, 3, 0.5), cpus=12 + 12 + 9 + 3 + 12)
    assert (node_devices(made), node_count(made)) == (4, 3)  # 4 | 4 | 3 + .5
    halves = recipe(
        *policy, on_policy, "placement.prmu=dedicated", "placement.prmu_devices=0.5", "placement.prmu_serving.scorers=3"
    )
    assert need(halves).parts == (4, 4, 0.5, 0.5, 0.5)
    wide = recipe(*policy, *rollout, on_policy, "cluster.devices_per_node=8")
    assert (node_devices(wide), node_count(wide), node_cpus(wide)) == (8, 2, 36)  # 4 + 4 | 3
    assert shortages(need(made), nodes((8, 60), (4, 60)), 12, 120) == ()
    assert shortages(need(made), nodes((7, 60), (4, 60)), 11, 120) == (
        "nodes: 4 asked, 2 alive",
        "devices in all: 11.5 asked, 11 there",
    )
    assert shortages(Need((4, 4, 4), 48), nodes((6, 60), (6, 60), (1, 60)), 13, 180) == (
        "devices of node 10.0.0.3: 4 asked, 1 there",
    )


def test_cores_are_threads_on_the_cpu_and_rays_count_on_cuda() -> None:
    assert node_cores(recipe("platform.threads=3", "platform.devices_per_node=2")) == 6
    assert node_cores(recipe("platform.device=cuda", "platform.devices_per_node=2")) == 18
    assert node_cores(recipe("cluster.cpus=5")) == 5


ASKED = Need(parts=(4, 4), cpus=36)


def nodes(*sizes: tuple[float, float]) -> list[NodeSize]:
    return [NodeSize(f"10.0.0.{number}", *size) for number, size in enumerate(sizes, start=1)]


@pytest.mark.parametrize(
    "there, free, lines",
    [
        (nodes((4, 24), (4, 12)), (8, 36), ()),
        (nodes((4, 24), (4, 12), (0, 2)), (8, 38), ()),  # a head without devices does no harm
        (
            nodes((4, 36)),
            (4, 36),
            ("nodes: 2 asked, 1 alive", "devices in all: 8 asked, 4 there"),
        ),
        (
            nodes((6, 30), (2, 30)),  # 8 devices, but not 4 on each
            (8, 60),
            ("devices of node 10.0.0.2: 4 asked, 2 there",),
        ),
        (
            nodes((4, 24), (4, 8)),
            (8, 32),
            ("CPUs of node 10.0.0.2: 12 asked, 8 there", "CPUs in all: 36 asked, 32 there"),
        ),
        (nodes((4, 12), (4, 12)), (8, 24), ("CPUs in all: 36 asked, 24 there",)),
        (
            nodes((4, 24), (4, 24)),
            (5, 35),
            ("free devices: 8 asked, 5 of 8 are free", "free CPUs: 36 asked, 35 of 48 are free"),
        ),
    ],
)
def test_a_cluster_that_is_too_small_is_described(
    there: list[NodeSize], free: tuple[float, float], lines: tuple[str, ...]
) -> None:
    assert shortages(ASKED, there, *free) == lines


def test_nodes_of_one_address_are_two_nodes() -> None:
    there = [NodeSize("10.0.0.1", 4, 60), NodeSize("10.0.0.1", 4, 60)]
    assert shortages(Need((4, 4), 48), there, 8, 120) == ()


def test_the_command_runs_the_recipe_with_its_overrides_in_the_storage() -> None:
    made = recipe("cluster.storage=/mnt/runs", "data.limit=3")
    command = run_command(made, SMOKE, ["data.tasks=[LaMP_2, LaMP_4]"], "auto")
    assert shell(command) == (
        "python launch.py run recipes/smoke.yaml 'data.tasks=[LaMP_2, LaMP_4]' out=/mnt/runs platform.ray_address=auto"
    )
    assert run_command(recipe(), SMOKE, [], None, in_place=True) == ["python", "launch.py", "run", "recipes/smoke.yaml"]
    assert storage(recipe("out=/data/runs")) == "/data/runs" and storage(recipe()) is None


def test_a_recipe_that_would_lose_its_run_or_is_elsewhere_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "mine.yaml"
    other.write_text(f"extends: {SMOKE}\n", encoding="utf-8")
    with pytest.raises(TagprError) as caught:
        run_command(load_recipe(other), other, [], "auto")
    assert "cluster.storage: not set" in str(caught.value) and "not in this checkout" in str(caught.value)


@pytest.mark.parametrize(
    "override, part",
    [
        ("cluster.env=[WANDB_API_KEY=s3cret]", "'WANDB_API_KEY' is given with a value"),
        ("cluster.storage=runs", "cluster.storage"),
        ("cluster.storag=/runs", "did you mean 'storage'?"),
        ("cluster.slurm.partition='a\n#SBATCH --uid=0'", "cluster.slurm.partition"),
        ("cluster.kubernetes.namespace=My_Space", "cluster.kubernetes.namespace"),
    ],
)
def test_the_cluster_block_is_closed_and_holds_no_values(override: str, part: str) -> None:
    with pytest.raises(TagprError) as caught:
        recipe(override)
    assert part in str(caught.value) and "s3cret" not in str(caught.value)


def test_the_cluster_block_changes_no_stage() -> None:
    from tagpr_rl.run.manifest import stage_config

    one, other = recipe(), recipe("cluster.storage=/elsewhere", "cluster.image=me/image:2")
    assert [stage_config(one, name) for name in one.stages] == [stage_config(other, name) for name in other.stages]
