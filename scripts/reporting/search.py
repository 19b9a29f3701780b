"""G-Boost's search trees on a report, as lists that unfold: who wrote which step, how it was
rewarded, how often the search came through.

A run keeps no words of a site's question, answer or step: the tree that it keeps of its own accord
has none (built-in world only, whose models load in a moment). Words are there when somebody asked a
question on purpose: `fedduet ask ... --keep`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from fedduet.conf.check import ConfigError, check, nearest
from fedduet.conf.sections import read_top
from fedduet.scripts.reporting.html import rows_of
from fedduet.strategies.run.run_folder import write_atomically
from fedduet.strategies.run.summary import told
from fedduet.tasks.data.questions import QuestionsConfig, check_task, load_questions, names_of

if TYPE_CHECKING:  # they load torch, which a page of a run does without
    from fedduet.clients.vault.answering.config import SearchConfig
    from fedduet.clients.vault.answering.solving import Solution
    from fedduet.clients.vault.config import SiteConfig

FILE = "searches.jsonl"
ASK = (
    "<p>To see a search with its words, ask a question on purpose: <code>fedduet ask RUN --client"
    ' NAME "QUESTION" --keep</code>, then <code>fedduet report RUN</code>.</p>'
)
MOST = 3  # trees on a page, the last ones kept [O]


def keep(run: Path, client: str, solution: Solution, words: bool) -> None:
    """Add a search to the run folder, and forget an older one of the same client and question.
    Without `words` only figures are kept."""
    nodes = [dict(node) for node in solution.nodes]
    chosen = sorted(_chosen(_root(nodes), [step.text for step in solution.steps], _below(nodes)))
    if not words:
        nodes = [
            {
                key: node[key]
                for key in ("number", "parent", "mode", "reward", "degraded", "finished", "visits")
            }
            for node in nodes
        ]
    question, answer = (solution.question, solution.answer) if words else (None, None)
    new = {
        "client": client,
        "question": question,
        "answer": answer,
        "chosen": chosen,
        "nodes": nodes,
    }
    new |= {"stopped": solution.stopped, "costs": asdict(solution.costs)}
    old = [
        row
        for row in rows_of(run / FILE)
        if (row["client"], row["question"]) != (client, solution.question)
    ]
    write_atomically(
        run / FILE,
        "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in (*old, new)),
    )


def keep_a_search(folder: Path) -> None:
    """In a simulation: the search for one test question of the first site, without any words, for
    the run's report."""
    from fedduet.clients.vault.reasoning import ReasoningVault
    from fedduet.clients.vault.release.policy import PolicyError

    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    task, seed = check_task(config["task"]), read_top(config).seed
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    client, model = names_of(task)[0], told(summary)["taught"][0]
    question = load_questions(task, client, seed).test[0].question
    site, run, search = answering_site(folder, client)
    with suppress(PolicyError):  # a site that keeps questions from the LLM has no search to show
        solution = ReasoningVault(site).solve(run, model, question, search)
        keep(folder, client, solution, words=False)


def answering_site(folder: Path, client: str | None) -> tuple[SiteConfig, str, SearchConfig]:
    """A simulated site of the run in `folder`, the run's id, and the settings of its search.

    Raises ConfigError for what is no run that answers questions, and for an unknown site.
    """
    from fedduet.clients.simulated import simulated_site, site_folder
    from fedduet.clients.vault.answering.config import SearchConfig
    from fedduet.clients.vault.config import read_sites

    if not (folder / "config.yaml").is_file() or not (folder / "run_id").is_file():
        raise ConfigError(
            f"{folder} is no run folder; give that of a finished G-Boost run, or --vault site.yaml"
        )
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    part = read_sites(config)
    if not isinstance(part.task, QuestionsConfig):
        raise ConfigError(
            f"{folder} is a run of strategy {config['strategy']['name']}; only G-Boost answers"
            " questions"
        )
    names = names_of(part.task)
    if client not in names:
        raise ConfigError(f"--client: found {client!r}; {nearest(str(client), list(names))}")
    sites = part.state_folder if part.state_folder.is_dir() else folder / "sites"
    search = check(SearchConfig, config["strategy"].get("search", {}), "strategy.search")
    site = simulated_site(part, client, sites / site_folder(client))
    return site, (folder / "run_id").read_text().strip(), search


def searches(folder: Path) -> str:
    """The trees that the run keeps, or how to keep one."""
    rows = rows_of(folder / FILE)[-MOST:]
    if not rows:
        return f"<p>No search is kept.</p>{ASK}"
    how = (
        "Each step says who wrote it: the private SLM alone, or it and the LLM together. The number"
        " is its process reward, N how often "
    )
    how += "the search came through."
    if any(row["question"] for row in rows):
        how += (
            " Questions with words were asked on purpose; steps of a private SLM have no guarantee."
        )
    return f"<p>{how}</p>{''.join(map(_tree, rows))}{ASK}"


def _tree(row: Mapping[str, Any]) -> str:
    costs = row["costs"]
    said = (
        f"{len(row['nodes']) - 1} steps tried, {costs['llm_tokens']} LLM tokens,"
        f" {costs['slm_tokens']} SLM tokens, {costs['reward_calls']} rewards; stopped:"
        f" {row['stopped']}"
    )
    if row["question"] is None:
        asked, answer = (
            "one of the site's own test questions; its words, answer and steps stay there",
            "",
        )
    else:
        asked, answer = (
            row["question"],
            ("no answer" if row["answer"] is None else f"answer {row['answer']}"),
        )
    tree = _children(_root(row["nodes"]), _below(row["nodes"]), set(row["chosen"]))
    return (
        f'<details class="tree"><summary>{escape(row["client"])}: {escape(asked)}'
        f" <b>{escape(answer)}</b></summary><p>{escape(said)}. The path that answers is"
        f" open.</p>{tree}</details>"
    )


def _root(nodes: Sequence[Mapping[str, Any]]) -> int:
    return next((node["number"] for node in nodes if node["parent"] is None), 0)


def _below(nodes: Sequence[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    below: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for node in nodes:
        if node["parent"] is not None:
            below[node["parent"]].append(node)
    return below


def _children(number: int, below: Mapping[int, list[Mapping[str, Any]]], chosen: set[int]) -> str:
    items = []
    for node in sorted(below.get(number, []), key=lambda one: -one["visits"]):
        mark = " chosen" if node["number"] in chosen else ""
        mode = node["mode"] + (", the LLM failed" if node.get("degraded") else "")
        end = (
            f", ends with {node['answer']}"
            if node.get("answer") is not None
            else ", an end"
            if node.get("finished")
            else ""
        )
        line = (
            f'<span class="mode {escape(node["mode"])}">{escape(mode)}</span> {escape(_said(node))}'
            f' <span class="figures">{node["reward"]:.2f}, N {node["visits"]}{escape(end)}</span>'
        )
        inner = _children(node["number"], below, chosen)
        opened = " open" if mark else ""
        items.append(
            f'<li class="node{mark}"><details{opened}><summary>{line}</summary>'
            f"{inner}</details></li>"
            if inner
            else f'<li class="node{mark}"><p>{line}</p></li>'
        )
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _said(node: Mapping[str, Any]) -> str:
    return f"step {node['number']}" if "text" not in node else node["text"] or "(end)"


def _chosen(
    number: int, path: Sequence[str], below: Mapping[int, list[Mapping[str, Any]]]
) -> set[int]:
    """Numbers of the nodes whose steps are the solution's, from the root down."""
    if not path:
        return set()
    for node in below.get(number, []):
        if node["text"] == path[0]:
            rest = _chosen(node["number"], path[1:], below)
            if len(rest) == len(path) - 1:
                return {node["number"], *rest}
    return set()
