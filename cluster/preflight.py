"""Checks this machine before anything is downloaded. Standard library only; runs on any Python 3.

    python3 cluster/preflight.py [--folder FOLDER]

Prints every problem with its remedy and exits with 2, or prints nothing and exits with 0.
"""

import argparse
import importlib.util
import os
import platform
import shutil
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PYTHON = (3, 11)  # the Python of requirements/cpu.lock
NEED_GB = 8  # environment 3 GB, package cache as much again, a run 1 GB, and some room
COMPILERS = ("cc", "gcc", "clang")
SYSTEMS = ("Linux",)
MACHINES = ("x86_64",)


def python_problem(version: "Sequence[int]") -> "str | None":
    """The lock pins packages for one minor version of Python; others lack builds of some of them."""
    if tuple(version[:2]) == PYTHON:
        return None
    want = ".".join(map(str, PYTHON))
    return "Python {}.{} is not Python {}: install it and name it, make demo PYTHON=/path/to/python{}".format(
        version[0], version[1], want, want
    )


def system_problem(system: str, machine: str) -> "str | None":
    """The lock is resolved for Linux on x86_64."""
    if system in SYSTEMS and machine in MACHINES:
        return None
    return "{} on {} is not supported: the lock file is for Linux on x86_64; use such a machine or container".format(
        system, machine
    )


def venv_problem(has_module: "Callable[[str], bool]") -> "str | None":
    """Some distributions ship Python without the modules that make environments."""
    missing = [name for name in ("venv", "ensurepip") if not has_module(name)]
    if not missing:
        return None
    return "this Python lacks {}: install your system's python3-venv package, or another Python".format(
        " and ".join(missing)
    )


def disk_problem(folder: str, free_bytes: int) -> "str | None":
    """Room for the environment, the package cache and a run."""
    if free_bytes >= NEED_GB * 10**9:
        return None
    return "only {:.1f} GB are free at {}, {} GB are needed: free some, or put the checkout on another disk".format(
        free_bytes / 1e9, folder, NEED_GB
    )


def compiler_problem(which: "Callable[[str], str | None]") -> "str | None":
    """torch.compile and DeepSpeed build small C++ extensions at run time."""
    if any(which(name) for name in COMPILERS):
        return None
    return "no C compiler ({}): install your system's build tools (gcc and g++)".format(", ".join(COMPILERS))


def writable_problem(folder: str, may_write: bool) -> "str | None":
    """The environment and the runs are written below the checkout."""
    if may_write:
        return None
    return "{} is not writable: put the checkout in a folder of your own".format(folder)


def problems(folder: str) -> "list[str]":
    """Every problem of this machine, each with its remedy."""
    found = [
        system_problem(platform.system(), platform.machine()),
        python_problem(tuple(sys.version_info[:2])),
        venv_problem(lambda name: importlib.util.find_spec(name) is not None),
        disk_problem(folder, shutil.disk_usage(folder).free),
        compiler_problem(shutil.which),
        writable_problem(folder, os.access(folder, os.W_OK)),
    ]
    return [problem for problem in found if problem]


def main(argv: "Sequence[str] | None" = None) -> int:
    """Print the problems; 2 if there are any, else 0."""
    parser = argparse.ArgumentParser(description="Check this machine before installing.")
    parser.add_argument("--folder", default=os.getcwd(), help="where the environment and the runs will be written")
    found = problems(parser.parse_args(argv).folder)
    if not found:
        return 0
    sys.stderr.write("this machine is not ready; nothing was downloaded:\n")
    for problem in found:
        sys.stderr.write("  - {}\n".format(problem))
    return 2


if __name__ == "__main__":
    sys.exit(main())
