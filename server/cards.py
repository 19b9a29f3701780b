"""Cards of the LLM adapters in a run folder, written when the run has ended and its budgets and
figures are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedduet.lm.models.card import Card, guarantee, write_card

WHAT = {  # by the end of a folder's name
    "pooled": "ALL SITES' PRIVATE TEXTS, as they are: an upper bound that only a simulation has",
    "unfiltered": "texts that the LLM itself wrote, all of them, not chosen by any score",
}


def write_adapter_cards(folder: Path, summary: Mapping[str, Any]) -> None:
    """A card in every folder of `folder`/adapters, after the run's `summary`; adapters of undone
    tunings have no folder."""
    for adapter in sorted((folder / "adapters").glob("tune-*")):
        write_card(adapter, _card(adapter.name, summary), _metrics(adapter.name, summary))


def _card(name: str, summary: Mapping[str, Any]) -> Card:
    kind = next((end for end in WHAT if name.endswith(end)), "")
    what = WHAT.get(
        kind, "texts that the LLM itself wrote, weighed or chosen by the scores of the sites"
    )
    title = "writes texts of a label" if "generator" in name else "tells the label of a text"
    llm, stand_in = summary["llm"], "stand-in" in summary["llm"].get("description", "")
    return Card(
        f"{name}: adapter of an LLM that {title}",
        "text-generation",
        str(llm.get("path", "")),
        f"{what}. Task: {summary['task']}, {summary['clients']} sites, strategy"
        f" {summary['strategy']}, seed {summary['seed']}.",
        _privacy(kind, summary),
        adapter=True,
        notes=(
            [
                f"{llm['description']}: no real LLM. It shows that the machinery works, not what it"
                " would reach."
            ]
            if stand_in
            else []
        ),
    )


def _privacy(kind: str, summary: Mapping[str, Any]) -> list[str]:
    if kind == "pooled":
        return ["Trained on private texts: no epsilon covers it, and it must not be given away."]
    if kind == "unfiltered":
        return ["No private text and no score of a site went into it."]
    said = [f"The scores were protected by: {summary.get('feedback', 'none')}."]
    for site, epsilon in summary["epsilon"].items():
        said.append(
            f"{site}, everything its ledger held: {guarantee(epsilon, summary['delta'][site])}"
        )
    if any(math.isinf(epsilon) for epsilon in summary["epsilon"].values()):
        said.append(
            "Scores that come without a guarantee depend on private texts, and so does this"
            " adapter."
        )
    return said


def _metrics(name: str, summary: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    """Figures of the adapter that `name` ends as; the last round's is "after"."""
    last = f"-{summary['rounds'] - 1}"
    when = next(
        (end for end in WHAT if name.endswith(end)), "after" if name.endswith(f"task{last}") else ""
    )
    when = "generator" if name.endswith(f"generator{last}") else when
    accuracy, general = summary.get("llm_accuracy", {}), summary.get("llm_general", {})
    found = {"accuracy on the sites' test texts": (accuracy[when], 0)} if when in accuracy else {}
    if when in general:
        found["perplexity of neutral text"] = (general[when]["perplexity"], 0)
    return found
