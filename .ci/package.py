"""Checks of the package laid out as a wheel has it: contracts of import-linter, and types that
mypy sees (pyproject.toml holds both)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lay_out(place: Path) -> None:
    """Copy the folders of this checkout into `place` as a wheel holds them, with pyproject.toml."""
    project = ROOT / "pyproject.toml"
    folders = tomllib.loads(project.read_text())["tool"]["setuptools"]["package-dir"]
    ignored = shutil.ignore_patterns("__pycache__")
    for name, folder in folders.items():
        shutil.copytree(ROOT / folder, place.joinpath(*name.split(".")), ignore=ignored)
    shutil.copy(project, place)


def main() -> int:
    """The number of checkers that found something."""
    linter = "import sys; sys.path.insert(0, '.'); from importlinter.cli import *"
    checkers = (
        [sys.executable, "-c", f"{linter}; lint_imports_command()"],
        [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache")],
    )
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        return sum(subprocess.run(checker, cwd=folder).returncode != 0 for checker in checkers)


if __name__ == "__main__":
    sys.exit(main())
