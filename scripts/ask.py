"""`fedduet ask`: one question to a site, answered by its private SLM and the general LLM together;
who wrote each step, and its reward."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedduet.clients.vault.answering.config import BASELINES, SEARCH, SearchConfig
from fedduet.clients.vault.answering.solving import Solution
from fedduet.clients.vault.config import SiteConfig
from fedduet.clients.vault.release.policy import PolicyError
from fedduet.conf.check import ConfigError, check
from fedduet.scripts.reporting.search import answering_site, keep
from fedduet.strategies.gboost import MODEL
from rich.console import Console
from rich.table import Table


def main(argv: Sequence[str]) -> int:
    """Print the answer, the steps, which mode wrote each, and its reward; 2 for what cannot be
    asked."""
    parser = argparse.ArgumentParser(prog="fedduet ask", description=__doc__)
    parser.add_argument(
        "run",
        help=(
            "folder of a finished G-Boost run; with --vault the id of a run that tuned an SLM there"
        ),
    )
    parser.add_argument("question")
    parser.add_argument("--client", help="the simulated site that is asked")
    parser.add_argument(
        "--vault",
        type=Path,
        help="a real site's YAML file: the question is asked here, through no server",
    )
    parser.add_argument(
        "--method",
        default=SEARCH,
        help=f"search, or a baseline such as slm, llm, proxy_tuning (of {len(BASELINES)})",
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, help="tokens that the LLM may take part in drawing")
    parser.add_argument(
        "--keep", action="store_true", help="keep the search tree in the run folder, for its report"
    )
    given = parser.parse_args(list(argv))
    from fedduet.clients.vault.reasoning import ReasoningVault

    try:
        site, run, search = _site(given.run, given.client, given.vault)
        if given.budget is not None:
            search = check(
                SearchConfig, search.model_dump() | {"llm_token_budget": given.budget}, "--budget"
            )
        if given.keep and given.vault:
            raise ConfigError(
                "--keep: a real site's search stays at the site; leave it out, or give a"
                " simulated run"
            )
        solution = ReasoningVault(site).solve(
            run, given.model, given.question, search, given.seed, given.method
        )
    except (ConfigError, PolicyError, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    show(solution, Console())
    if given.keep:
        keep(Path(given.run), given.client, solution, words=True)
        print(f"kept for the report: fedduet report {given.run}")
    return 0


def show(solution: Solution, console: Console) -> None:
    """The answer first, then how it came about."""
    none = "none: no number or choice in what was written"
    console.print(f"answer: {none if solution.answer is None else solution.answer}")
    table = Table("step", "written by", "reward")
    for step in solution.steps:
        mode = f"{step.mode} (the LLM failed)" if step.degraded else step.mode
        table.add_row(step.text, mode, "" if step.reward is None else f"{step.reward:.3f}")
    console.print(table)
    costs = solution.costs
    console.print(
        f"{costs.llm_tokens} LLM tokens, {costs.slm_tokens} SLM tokens, {costs.reward_calls}"
        f" rewards, {solution.seconds:.2f} s; {len(solution.nodes)} nodes, stopped:"
        f" {solution.stopped}",
        highlight=False,
    )


def _site(run: str, client: str | None, vault: Path | None) -> tuple[SiteConfig, str, SearchConfig]:
    """The site that is asked, the id of the run that tuned its SLM, and the settings of the
    search."""
    if vault:
        from fedduet.clients.vault.service import read_site

        return read_site(vault)[1], run, SearchConfig()
    return answering_site(Path(run), client)
