"""One of two runs on a Ray cluster that has room for one; prints what came of it as JSON.

Arguments: the cluster's address, this run's name, the other's, a folder where they wait for each other. Each holds a
node of two devices before it asks for the second, as verl may: its placement groups are not made together.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tagpr_rl.backend.session import supervisor
from tagpr_rl.backend.session.ray_session import ray_session
from tagpr_rl.config import load_recipe
from tagpr_rl.types import TagprError


def main(address: str, name: str, other: str, folder: str) -> None:
    """See the module's docstring."""
    supervisor.LOOK_S = 3.0
    platform = [f"platform.ray_address={address}", "platform.nodes=2", "platform.devices_per_node=2"]
    recipe = load_recipe(Path("recipes/smoke.yaml"), [*platform, "stages.sft.batch_size=4"])

    def meet(where: str) -> None:
        Path(folder, f"{where}-{name}").touch()
        while not Path(folder, f"{where}-{other}").exists():
            time.sleep(0.05)

    began, outcome = time.monotonic(), "has both"
    try:
        with ray_session(recipe) as ray:

            @ray.remote(num_cpus=1)
            def stage() -> None:
                from ray.util.placement_group import placement_group

                first = placement_group([{"CPU": 3, "GPU": 1}] * 2, strategy="STRICT_PACK")
                ray.get(first.ready())
                meet("half")
                second = placement_group([{"CPU": 3, "GPU": 1}] * 2, strategy="STRICT_PACK")
                ray.get(second.ready())

            meet("joined")
            began = time.monotonic()
            supervisor.result(stage.remote())
    except TagprError as error:
        outcome = str(error)
    print(json.dumps({"outcome": outcome, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main(*sys.argv[1:])
