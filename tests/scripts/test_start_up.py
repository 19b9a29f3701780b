"""What a command imports before it has something to compute: counted in modules, not in seconds."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "sklearn", "scipy", "datasets", "ray", "dp_accounting")
PROGRAM = """
import json, sys
sys.argv = ["fedduet", *json.loads(sys.argv[1])]
from fedduet.scripts.run import main
try:
    code = main()
except SystemExit as end:
    code = end.code
print(json.dumps([code, sorted(set(json.loads('@HEAVY@')) & set(sys.modules))]))
""".replace("@HEAVY@", json.dumps([*HEAVY, "flwr"]))


def imported(arguments: list[str]) -> tuple[int, set[str]]:
    """The exit code of a command, and which of the heavy packages its process had imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments)], capture_output=True, text=True
    )
    code, found = json.loads(done.stdout.splitlines()[-1])
    return code, set(found)


@pytest.mark.parametrize(
    "words",
    ["strategies", "tasks", "engines", "--help", "--version", "predict --help", "report --help", "watch --help",
     "ask --help", "gateway --help", "table --help", "track --help", "sweep-report --help"],
)  # fmt: skip
def test_commands_that_show_something_import_nothing_heavy(words):
    assert imported(words.split()) == (0, set())


@pytest.mark.parametrize(
    "words",
    ["privacy.epsilon=-1", "llm.temperature=warm", "slm.epochs=0", "generator.clip=-1",
     "federation.kind=ray", "strategy=crosslm strategy.policy.rank=0", "strategy.augment.none=1",
     "strategy=gboost task=arithmetic answers=arithmetic strategy.search.children=0"],
)  # fmt: skip
def test_an_error_of_a_value_is_told_before_anything_heavy_is_imported(words):
    code, found = imported(words.split())
    assert code == 2 and not found - {"flwr"}
