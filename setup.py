"""Puts into the wheel what lies beside the package in a checkout: recipes, cluster templates, locks."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BESIDE = {"recipes": "*.yaml", "cluster/templates": "*.j2", "requirements": "*.lock"}
"""Folder -> files; they come to lie in tagpr_rl/<folder>, where tagpr_rl.files.shipped finds them."""


class BuildWithShipped(build_py):
    """Copies the files of `BESIDE`; an editable install needs no copy."""

    def run(self) -> None:
        """Build as usual, then copy."""
        super().run()
        if self.editable_mode:
            return
        for folder, pattern in BESIDE.items():
            for path in sorted(Path(folder).rglob(pattern)):
                target = Path(self.build_lib, "tagpr_rl", path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithShipped})
