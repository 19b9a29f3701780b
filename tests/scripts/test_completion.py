"""Shell completion: of overrides by Hydra, of sub-commands by ours, through the very functions that
a shell calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shell(tmp_path):
    """Runs a line in bash where `fedduet` is this checkout's."""
    command = tmp_path / "fedduet"
    entry = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'fedduet'; from"
        " fedduet.scripts.run import command; command()"
    )
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{entry}" "$@"\n')
    command.chmod(0o755)

    def run(line):
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"PATH": path},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


def test_bash_completes_overrides_and_sub_commands(shell):
    asked = 'COMP_LINE="{0}" COMP_POINT={1} fedduet -sc query=bash'
    assert shell(asked.format("fedduet strategy=f", 18)) == [
        "strategy=fdkt",
        "strategy=fdkt_crosslm",
    ]
    assert shell(asked.format("fedduet swee", 12)) == ["sweep-report"]
    installed = (
        'eval "$(fedduet -sc install=bash)"; COMP_WORDS=(fedduet privacy.eps); COMP_CWORD=1;'
        ' COMP_LINE="fedduet privacy.eps"; '
    )
    assert shell(installed + 'COMP_POINT=19; hydra_bash_completion; echo "${COMPREPLY[@]}"') == [
        "privacy.epsilon="
    ]
