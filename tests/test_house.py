"""The house itself: imports point down, and the README's commands are the ones that exist."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]


def test_imports_point_down(tmp_path):
    """On a copy laid out as a wheel is, since the linter finds the parts of a package only
    there."""
    for name, folder in TOOL["setuptools"]["package-dir"].items():
        place = tmp_path.joinpath(*name.split("."))
        shutil.copytree(ROOT / folder, place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    program = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as"
        " c; c()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "4 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_a_wheel_holds_every_folder_with_code():
    folders = {
        "fedduet." + ".".join(file.parent.relative_to(ROOT).parts)
        for top in TOOL["setuptools"]["package-dir"].values()
        for file in (ROOT / top).rglob("*.py")
        if top != "fedduet"
    }
    assert folders | {"fedduet"} == set(TOOL["setuptools"]["packages"])


def test_make_targets_and_console_scripts_of_the_readme_exist():
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, re.MULTILINE):
        assert f"\n{target}:" in makefile
    for group in re.findall(r"`(?:fedduet )?(task|llm|slm|federation)=(\w+)", readme):
        assert (ROOT / "conf" / group[0] / f"{group[1]}.yaml").is_file(), group


UNSAFE = {  # in source, by what it would let in
    "pickles": (
        r"^\s*(import|from)"
        r" (pickle|cPickle|dill|cloudpickle|joblib|shelve|marshal)\b|allow_pickle\s*=\s*True|read_pickle"
    ),
    "weights that are pickles": (
        r"torch\.load\((?!.*weights_only=True)|weights_only\s*=\s*False|use_safetensors\s*=\s*False"
    ),
    "code of models or data sets": (
        r"trust_remote_code\s*[=:]\s*(?!False)\S|[\"']trust_remote_code[\"']"
    ),
    "code in strings": r"(?<![\w.])(eval|exec|compile|__import__)\(",
    "YAML that makes objects": r"yaml\.(load|unsafe_load|full_load)(_all)?\(",
    "a shell": r"shell\s*=\s*True|os\.(system|popen)\(",
    "certificates that nobody checks": r"verify\s*=\s*False|CERT_NONE|_create_unverified_context",
}


@pytest.mark.parametrize("what", UNSAFE)
def test_the_source_has_none_of(what):
    files = [
        file
        for file in ROOT.glob("*/**/*.py")
        if file.relative_to(ROOT).parts[0] not in (".venv", "tests", "runs")
    ]
    assert len(files) > 100
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(UNSAFE[what], line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    ["import pickle", "np.load(f, allow_pickle=True)", "torch.load(f)", "load(p, trust_remote_code=True)", "eval(text)", "yaml.load(f)",
     "trust_remote_code=config.trust", "run(command, shell=True)", "httpx.get(url, verify=False)"],
)  # fmt: skip
def test_the_search_finds(line):
    assert any(re.search(pattern, line) for pattern in UNSAFE.values())
    assert not any(
        re.search(pattern, "model.eval(); re.compile(x); yaml.safe_load(f)")
        for pattern in UNSAFE.values()
    )
