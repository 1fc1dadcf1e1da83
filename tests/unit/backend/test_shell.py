"""The shell's environment at the start of a run's own Ray cluster."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tagpr_rl.backend.session.shell import (
    BELOW,
    SOCKET_BYTES,
    drop_ray_variables,
    require_socket_folder,
    short_folder,
    unfit_folders,
    unfit_for_sockets,
)
from tagpr_rl.types import TagprError


def test_the_longest_folder_is_the_one_whose_sockets_just_fit(tmp_path: Path) -> None:
    """By hand: 107 bytes, of which the run's folder takes 15 and Ray's own part 70."""
    assert (SOCKET_BYTES, BELOW) == (107, 85)
    base = Path("/tmp")
    fits, long = base / ("a" * (22 - 5)), base / ("b" * (23 - 5))
    assert (len(str(fits)), len(str(long))) == (22, 23)
    assert "no such folder" in unfit_for_sockets(str(fits)) and "23 bytes are too long" in unfit_for_sockets(str(long))
    umlauts = "/tmp/" + "ü" * 10  # 15 characters, 25 bytes
    assert "25 bytes" in unfit_for_sockets(umlauts)
    assert "not writable" in unfit_for_sockets("/proc")  # whatever its permissions say
    assert unfit_for_sockets("/tmp") == "" and "absolute" in unfit_for_sockets("tmp") and unfit_for_sockets("")


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("value", ["/nowhere/at/all", "", "/tmp/" + "job_scratch_" * 8])
def test_a_folder_in_which_no_socket_can_lie_is_replaced_and_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    environment = {name: value, "PATH": "/bin"}
    [line] = require_socket_folder(environment)
    assert line.startswith(f"{name}={value}: ") and f"/tmp/tagpr-{os.getuid()}" in line
    assert environment == {"PATH": "/bin", "TMPDIR": f"/tmp/tagpr-{os.getuid()}"}
    assert require_socket_folder(environment) == [] and unfit_folders(environment) == {}


def test_no_folder_at_all_is_one_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TagprError, match="set TMPDIR to a writable folder whose path has at most 22 bytes"):
        short_folder((str(tmp_path / "file"), "/proc/nowhere"))


def test_another_cluster_s_variables_do_not_reach_a_private_one() -> None:
    shell = {
        "RAY_ADDRESS": "http://127.0.0.1:8265",
        "RAY_OVERRIDE_RESOURCES": "{}",
        "CUDA_VISIBLE_DEVICES": "0",
        "A": "b",
    }
    for cpu, left in ((True, {"A"}), (False, {"A", "CUDA_VISIBLE_DEVICES"})):
        environment = dict(shell)
        lines = drop_ray_variables(environment, cpu=cpu)
        assert set(environment) == left and len(lines) == 2
        assert lines[0].startswith("RAY_ADDRESS of the shell is not used") and "platform.ray_address" in lines[0]
