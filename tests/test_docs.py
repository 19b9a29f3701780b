"""Commands of README and docs/ are ones that exist: overrides compose, sub-commands have these
options, targets and modules are there."""

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fedduet.scripts.docs.docs_pages import CODE, pages
from fedduet.scripts.launching.words import check_words
from fedduet.scripts.run import COMMANDS, _command
from hydra.core.override_parser.overrides_parser import OverridesParser

from fedduet import conf

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKE = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROGRAMS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
OURS = ("fedduet", "make", "python", *PROGRAMS, "flwr", "flower-superlink", "flower-supernode")
# loops' variables, in the documentation
FILLED = {"$seed": "0", "$n": "1", "$feedback": "votes", "$(openssl rand -hex 24)": "key"}
# what a reader fills in
OPEN = {"overrides", "options", "...", "ROUND", "RUN...", "OVERRIDES...", "TEXT..."}


def commands(text):
    """Commands of ours in a page: of fenced blocks, line ends after a backslash joined, and of
    inline code."""
    found = []
    for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            found += re.split(r"(?:;|&&|\||\bdo\b)\s+", re.sub(r"\s+#.*", "", line))
    found += re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    for command in found:
        for variable, value in FILLED.items():
            command = command.replace(variable, value)
        with contextlib.suppress(ValueError):  # half a quotation: no command
            words = shlex.split(command)
            if len(words) > 1 and words[0].removeprefix(".venv/bin/") in OURS:
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def composes(overrides):
    """Whether Hydra takes them; of a sweep its first job."""
    overrides = [
        one for one in overrides if one not in OPEN and not one.startswith("-") and one != "job"
    ]
    check_words(overrides, COMMANDS)
    first = []
    for one in OverridesParser.create().parse_overrides(overrides):
        value = next(iter(one.sweep_iterator())) if one.is_sweep_override() else None
        first.append(one.input_line if value is None else f"{one.get_key_element()}={value}")
    conf.compose(first)


def has_options(name, words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        _command(name)(["--help"])
    if name in ("strategies", "tasks", "engines"):  # take nothing
        assert words == [] or words[0] == "|", words
        return
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in said.getvalue(), f"fedduet {name} has no {word}"


def check(words):
    program, *rest = words
    match program:
        case "make":
            assert rest[0].strip(".") in MAKE, f"make {rest[0]}"
        case "python":
            if rest[0] == "-m":
                assert importlib.util.find_spec(rest[1]), rest[1]
                assert all(
                    (ROOT / file).exists()
                    for file in rest[2:]
                    if rest[1] == "pytest" and not file.startswith("-")
                ), rest
        case "fedduet" if rest[0] in COMMANDS:
            has_options(rest[0], rest[1:])
        case "fedduet" if rest[0] not in ("--help", "..."):
            composes(rest)
        case "fedduet-train-reward" | "fedduet-gateway":
            has_options(program.removeprefix("fedduet-"), rest)
        case "flwr" | "flower-simulation" | "flower-supernode" | "flower-superlink":
            assert (Path(sys.executable).parent / program).exists() or program in PROGRAMS, program
            for config in re.findall(r"overrides=\"([^\"]*)\"", " ".join(rest)):
                composes(shlex.split(config))


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_command_of_a_page_is_valid(page):
    for words in commands(page.read_text(encoding="utf-8")):
        try:
            check(words)
        except Exception as problem:
            raise AssertionError(f"{page.name}: {shlex.join(words)}: {problem}") from problem


def test_commands_are_found_and_wrong_ones_are_caught():
    readme = list(commands((ROOT / "README.md").read_text()))
    assert ["make", "demo"] in readme and any(
        words[:2] == ["fedduet", "task=files"] and len(words) > 8 for words in readme
    )
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 60
    looped = list(commands("```\nfor seed in 0 1; do fedduet strategy=fdkt seed=$seed; done\n```"))
    assert looped == [["fedduet", "strategy=fdkt", "seed=0"]]
    for wrong in (
        ["make", "coffee"],
        ["fedduet", "strategy=fdtk"],
        ["fedduet", "privacy.epsilonn=8"],
        ["fedduet", "report", "RUN", "--picture"],
        ["python", "-m", "scripts.nothing"],
        ["fedduet", "reprot", "RUN"],
    ):
        with pytest.raises(Exception):  # noqa: B017
            check(wrong)


def test_links_and_pictures_of_the_readme_exist():
    for link in re.findall(
        r"\]\(([^)#:]+)\)|src=\"([^\":]+)\"|srcset=\"([^\":]+)\"", (ROOT / "README.md").read_text()
    ):
        assert (ROOT / next(filter(None, link))).exists(), link


def test_the_site_builds_with_strict_checks(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is missing; make docs installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "process reward model: {path: FOLDER" in re.sub(
        "<[^>]+>", "", (tmp_path / "reference" / "conf-answers.html").read_text()
    )
    assert "delta" in (tmp_path / "reference" / "vault.html").read_text()
    for page in tmp_path.glob("*.html"):  # nothing is fetched from elsewhere
        assert not re.search(
            r'<(?:script|img)[^>]+src="https?:|<link[^>]+stylesheet[^>]+href="https?:',
            page.read_text(),
        ), page.name


def test_the_reference_has_every_choice_every_key_and_every_command():
    made = pages()
    for group in (
        "strategy",
        "task",
        "llm",
        "slm",
        "generator",
        "privacy",
        "federation",
        "answers",
    ):
        for choice in conf.choices(group):
            assert f"## {group}={choice}\n" in made[f"conf-{group}"]
    total = (
        "| `policy.epsilon_total` | `${privacy.epsilon}` | over everything the site ever releases |"
    )
    assert total in made["conf-privacy"] and "`augment.per_label`" in made["conf-strategy"]
    assert all(
        f"fedduet {name}" in made["commands"] or name in ("tasks", "engines") for name in COMMANDS
    )
    assert "| `make demo` |" in made["commands"] and "- `fedduet-vault`" in made["commands"]
    for _, modules in CODE.values():
        assert all(importlib.util.find_spec(module) for module in modules)
