"""Single changes of what a server may ask, each of which a test must notice: `python
tests/privacy/interface_mutants.py` (minutes) prints which died and which survived, in a copy of
the tree whose tests pass.

Not run with the suite. A mutant is a file, its text and what stands there instead, and the tests
that should notice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
VAULT, SLM = "clients/vault/vault.py", "clients/vault/slm.py"
POLICY, REASONING = "clients/vault/release/policy.py", "clients/vault/reasoning.py"
FEEDBACK, TRAININGS = "clients/vault/feedback.py", "clients/vault/trainings.py"
GATEWAY, ACCESS = "server/gateway/app.py", "server/gateway/access.py"
DRAFTS, PROTOCOL = "lm/decoding/drafts.py", "server/gateway/protocol.py"
PRIVACY = "tests/privacy/test_game.py tests/privacy/test_counts.py tests/privacy/test_public.py"
ANSWERS, HTTP = "tests/clients/vault/test_reasoning.py", "tests/server/gateway/test_app.py"
USERS = "tests/clients/vault/test_user_unit.py"
RULES = "tests/clients/vault/release/test_policy.py"

MUTANTS: list[tuple[str, str, str, str]] = [
    (VAULT, "view = feedback.View.of(vectors)", "view = feedback.View.of(own)", PRIVACY),
    (VAULT, "feedback.View.of(vectors), len(", "feedback.View.of(own), len(", PRIVACY),
    (VAULT, "private_units=self._units if", "private_units=len(split.train) if", PRIVACY),
    (VAULT, "public_rows(self.config, self._units)", "len(split.train)", PRIVACY),
    (VAULT, "noisy_count(right, units, sigma, noise)", "round(right)", PRIVACY),
    (VAULT, "if not slm.is_public(request.model):", "if False:", PRIVACY),
    (VAULT, "bool(arrays))", "False)", PRIVACY),
    (
        VAULT,
        "receipt = None if self.config.simulated else self._counted_openly(request, measured)",
        "receipt = None",
        PRIVACY,
    ),
    (SLM, "padded=self._careful,\n                steps", "padded=False,\n                steps", PRIVACY),
    (SLM, "in (PUBLIC, DOMAIN_FIRST)", "in (DOMAIN_FIRST,)", PRIVACY),
    (SLM, "and (request.start is None or self.is_public(request.start))", "", PRIVACY),
    (FEEDBACK, "/ len(set(owners))", "/ len(labels)", f"{USERS} tests/privacy/test_public.py"),
    (FEEDBACK, "shrink = sigma**2 / max(1, units)", "shrink = sigma**2", "tests/clients/vault/test_feedback.py"),
    (TRAININGS, "    if config.repeatable:\n        return", "    if True:\n        return", PRIVACY),
    (TRAININGS, "if config.simulated else 0.0", "", f"{PRIVACY} {ANSWERS}"),
    (POLICY, "if exact and policy.share_metrics", "if False and policy.share_metrics", f"{PRIVACY} {RULES}"),
    (POLICY, 'abs(settings["alpha"])', 'settings["alpha"]', f"{ANSWERS} {RULES}"),
    (REASONING, '            self._charged_openly(f"{id} questions", run, "questions", len(questions))\n', "", ANSWERS),
    ("clients/vault/answering/cloud_llm.py", "            self._keep([prompt] if isinstance(prompt, str) else prompt)\n", "            pass\n", ANSWERS),
    (GATEWAY, "self._limit.settle(name, held, asked.cost)", "pass", HTTP),
    (GATEWAY, "isinstance(one, str) and len(one) > self._longest", "False and len(one) > self._longest", HTTP),
    (ACCESS, "if tokens > held:", "if tokens > 2 * held:", HTTP),
    (PROTOCOL, "max(chosen[place - first], LEAST_LOGPROB)", "chosen[place - first]", HTTP),
    (PROTOCOL, "places.tokens[:, :k]", "places.tokens[:, : k + 1]", HTTP),
    ("tasks/data/by_user.py", "(row.user, row.text): row", "row.text: row", "tests/tasks/data/test_by_user.py"),
]  # fmt: skip


def main() -> int:
    """How many survived, from the mutant number that is given on."""
    survivors, first = [], int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(
            ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__")
        )
        environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}

        def ran(tests: str) -> int:
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
            done = subprocess.run(
                [*command, *tests.split()],
                cwd=tree,
                env=environment,
                capture_output=True,
                check=False,
            )
            return done.returncode

        for tests in sorted({mutant[-1] for mutant in MUTANTS}):
            if ran(tests):
                raise SystemExit(f"without any mutant these fail: {tests}")
        for number, (name, found, instead, tests) in enumerate(MUTANTS, start=1):
            if number < first:
                continue
            file = tree / name
            text = file.read_text()
            if text.count(found) != 1:
                raise SystemExit(f"{name}: found {text.count(found)} times: {found}")
            file.write_text(text.replace(found, instead))
            code = ran(tests)
            file.write_text(text)
            died = code == 1
            if not died:
                survivors.append(number)
            said = "died" if died else f"SURVIVED (exit {code})"
            print(f"{number:2d} {said}: {name}: {found.strip()} -> {instead.strip()}", flush=True)
    print(
        f"{len(MUTANTS) + 1 - first - len(survivors)} of {len(MUTANTS) + 1 - first} died; survivors: {survivors}"
    )
    return len(survivors)


if __name__ == "__main__":
    sys.exit(main())
