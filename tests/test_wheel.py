"""The distributions: what an empty environment gets, beside a project with folders named like ours."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OTHERS = ("scripts", "server", "clients", "conf", "lm", "strategies", "tasks", "wire")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist of what git would carry, made without a network."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    program = (
        f"from setuptools import build_meta as b; b.build_sdist({str(out)!r});"
        f" b.build_wheel({str(out)!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def project(built, tmp_path_factory):
    """A project with its own folders of our names, and an environment that has the wheel.

    Its path ends with this environment's packages, so that torch need not be installed again; the
    editable install of this checkout does not follow, since a .pth file of a path is not looked
    into for others."""
    folder = tmp_path_factory.mktemp("project")
    for name in OTHERS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("MINE = True\n")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(built[0])], check=True)
    place = next((folder / "env" / "lib").glob("python*")) / "site-packages"
    (place / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def run(project, *command, **more):
    """A console script, or python, of the project's environment, in the project's folder."""
    program = project / "env" / "bin" / command[0]
    return subprocess.run(
        [str(program), *command[1:]],
        cwd=project,
        env={"PATH": "/usr/bin:/bin", "HOME": str(project), "OMP_NUM_THREADS": "1", **more},
        capture_output=True,
        text=True,
    )


def test_the_sdist_has_the_licence_and_every_module(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = ["git", "ls-files", *OTHERS, "fedduet"]
    ours = set(subprocess.check_output(listed, cwd=ROOT, text=True).splitlines())
    assert {name for name in ours if name.endswith((".py", ".yaml", ".css", ".js"))} - names == {
        name for name in ours if name.startswith("scripts/deploy/containers/") and ".yaml" in name
    }
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_the_wheel_stands_beside_a_project_with_folders_of_the_same_names(project):
    program = (
        "import json, sys; import fedduet.scripts.run as ours; import scripts, conf;"
        " print(json.dumps([ours.__file__, ours.conf.__file__, scripts.MINE and conf.MINE]))"
    )
    done = run(project, "python", "-c", program)
    assert done.returncode == 0, done.stderr
    command, configuration, mine = json.loads(done.stdout)
    assert mine and all(str(project / "env") in path for path in (command, configuration))


@pytest.mark.parametrize("words", ["strategies", "--help", "--version"])
def test_commands_of_the_wheel_work(project, words):
    done = run(project, "fedduet", *words.split())
    assert done.returncode == 0, done.stderr
    if words == "--version":
        assert (
            f"fedduet {PROJECT['version']}\nflwr {version('flwr')}\ntorch {version('torch')}"
            in (done.stdout)
        )


def test_a_run_of_the_wheel_completes(project, overrides, tmp_path):
    done = run(project, "fedduet", *overrides, FEDDUET_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "completed"


@pytest.mark.ray
def test_a_run_of_the_wheel_on_ray_completes(project, overrides, tmp_path):
    without = [entry for entry in overrides if not entry.startswith("federation=")]
    off = "strategy.baselines={dp_only: false, zero_shot: false, fedavg: false, pooled: false}"
    done = run(project, "fedduet", *without, off, FEDDUET_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "completed"


def test_the_lock_is_within_every_range():
    lock = dict(
        line.split("==")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    lock = {re.sub(r"[-_.]+", "-", name).lower(): exact for name, exact in lock.items()}
    for text in PROJECT["dependencies"]:
        wanted = Requirement(text)
        exact = lock[re.sub(r"[-_.]+", "-", wanted.name).lower()]
        assert wanted.specifier.contains(exact), text
        assert any(one.operator in ("<", "==") for one in wanted.specifier), f"{text}: no end"
