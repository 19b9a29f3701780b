"""A MkDocs hook that makes the reference: commands from `fedduet --help`, settings from conf/ with
their comments, code from docstrings."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs does not put the repository on the path

GROUPS = sorted(
    folder.name
    for folder in (ROOT / "conf").iterdir()
    if folder.is_dir() and any(folder.glob("*.yaml"))
)
CODE = {  # page: title and modules
    "strategies": (
        "Strategies and moves",
        [
            "fedduet.strategies.run.moves",
            "fedduet.strategies.fdkt",
            "fedduet.strategies.crosslm",
            "fedduet.strategies.gboost",
            "fedduet.strategies.baselines",
            "fedduet.strategies.run.spec",
            "fedduet.strategies.run.texts",
            "fedduet.strategies.custom",
        ],
    ),
    "vault": (
        "Vault",
        [
            "fedduet.clients.vault.vault",
            "fedduet.clients.vault.budget.ledger",
            "fedduet.clients.vault.release.policy",
            "fedduet.clients.vault.config",
            "fedduet.clients.vault.answering.search",
        ],
    ),
    "models": (
        "Models",
        [
            "fedduet.lm.dp.dpsgd",
            "fedduet.lm.dp.accounting",
            "fedduet.lm.training.classify",
            "fedduet.lm.training.causal",
            "fedduet.lm.decoding.fusion",
        ],
    ),
    "tasks": (
        "Tasks",
        [
            "fedduet.tasks.config",
            "fedduet.tasks.task",
            "fedduet.tasks.data.questions",
            "fedduet.tasks.reasoning",
        ],
    ),
    "engines": (
        "LLM engines",
        [
            "fedduet.server.llm.base",
            "fedduet.server.llm.config",
            "fedduet.server.writing.curate",
            "fedduet.server.writing.augment",
        ],
    ),
    "messages": ("Messages", ["fedduet.wire.messages"]),
}


def on_startup(**_: Any) -> None:
    """MkDocs' event: lay the package out as a wheel holds it, where mkdocs.yml has code read. It is
    read without being run, so the path that fedduet/__init__.py extends would not be followed."""
    place = ROOT / "build" / "docs"
    shutil.rmtree(place, ignore_errors=True)
    runpy.run_path(str(ROOT / ".ci" / "package.py"))["lay_out"](place)


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' event: add the generated pages."""
    from mkdocs.structure.files import File

    for name, content in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def pages() -> dict[str, str]:
    """The reference's pages in Markdown, by name."""
    made = {
        name: f"# {title}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
        for name, (title, modules) in CODE.items()
    }
    return made | {"commands": commands()} | configuration()


def commands() -> str:
    """What `fedduet --help` says, and every sub-command's own help."""
    source = (ROOT / "scripts" / "run.py").read_text(encoding="utf-8")
    usage = re.search(r'USAGE = """(.*?)\n\ngroups', source, re.DOTALL)[1]  # type: ignore[index]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = "\n".join(
        f"| `make {name}` | {said} |"
        for name, said in re.findall(r"^([\w-]+):.*?## (.+)$", makefile, re.MULTILINE)
    )
    scripts = re.search(
        r"\[project\.scripts\]\n(.*?)\n\n",
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        re.DOTALL,
    )[1]  # type: ignore[index]
    programs = "\n".join(f"- `{line.split(' = ')[0]}`" for line in scripts.splitlines())
    return (
        f"# Commands\n\n```\n{usage}\n```\n\nEvery sub-command answers `--help`.\n\n##"
        f" Programs\n\n{programs}\n\n## Make\n\n| target | what it does |\n|---|---|\n{targets}\n"
    )


def configuration() -> dict[str, str]:
    """A page of what there is, and one for each group of conf/ with its choices: the comment on a
    file's first line, then each key, its value and its comment."""
    first = (
        "# Configuration\n\nOne choice of each group, and any key by override: `fedduet task=files"
        " privacy.epsilon=4 seed=1`. `${builtin_or:PATH,A,B}` is A for a model of the built-in"
        " world and B for any other. A choice that builds on another (`defaults`) has that one's"
        " keys too.\n\n| group | choices |\n|---|---|\n"
    )
    made = {}
    for group in GROUPS:
        files = sorted((ROOT / "conf" / group).glob("*.yaml"))
        choices = ", ".join(f"`{group}={file.stem}`" for file in files)
        first += f"| [{group}](conf-{group}.md) | {choices} |\n"
        parts = [f"# Configuration: {group}\n"]
        for file in files:
            parts.append(f"## {group}={file.stem}\n\n{_choice(file.read_text(encoding='utf-8'))}\n")
        made[f"conf-{group}"] = "\n".join(parts)
    return {"configuration": first} | made


def _choice(text: str) -> str:
    lines, said, rows, above = text.splitlines(), [], [], []
    while lines and lines[0].startswith("#"):
        said.append(lines.pop(0).removeprefix("#").strip())
    simple = all(re.match(r"^\s*([\w-]+:|#|$)", line) for line in lines)
    if not simple:  # lists and folded lines: as they are
        return "\n".join(said) + "\n\n```yaml\n" + "\n".join(lines) + "\n```"
    for line in lines:
        match = re.match(r"^(\s*)([\w-]+):\s*(.*?)\s*(?:(?<=\s)#\s*(.*))?$", line)
        if not match:
            continue
        indent, key, value, comment = len(match[1]), match[2], match[3], match[4] or ""
        above = [(depth, name) for depth, name in above if depth < indent]
        dotted = ".".join([*(name for _, name in above), key])
        above.append((indent, key))
        rows.append(f"| `{dotted}` | {_code(value)} | {comment.replace('|', chr(92) + '|')} |")
    return "\n".join(said) + "\n\n| key | value | |\n|---|---|---|\n" + "\n".join(rows)


def _code(value: str) -> str:
    return f"`{value.replace('|', chr(92) + '|')}`" if value else ""
