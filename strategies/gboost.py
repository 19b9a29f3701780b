"""G-Boost (Fan et al. 2025, arXiv 2503.10367): a private SLM and a general LLM answer together,
guided by process reward.

The algorithm, which every site runs for each of its questions by itself, since question, steps and
answer stay there; in brackets the names that do the work, in clients/vault/answering:

    tree <- the question, no step yet                                              [tree.Tree]
    repeat until a budget is spent or the answer is settled             [search._Search.solve]
        select   leaves by UCT, Q + c * sqrt(ln N_parent / N)                    [Tree.select]
        expand   each leaf by children of two modes                 [_Search._plan; writers]
                     private:        softmax(z_SLM)
                     collaborative:  softmax(z_LLM + alpha * (z_SLM - z_base))
        reward   r = R(question, steps) of every new step, no rollout         [_Search._grow]
        back up  N += 1, W += r from the child to the root                         [Tree.add]
    answer       of the best finished path, or a vote weighed by reward      [_Search._chosen]

What runs here is the comparison: every site tunes its SLM, then answers by each method at one
budget of LLM tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import pydantic
from fedduet.conf.check import Section
from fedduet.strategies.run.moves import Moves
from fedduet.strategies.run.spec import Needs, Spec
from fedduet.wire.messages import Learn

MODEL = "private"
SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "gboost": {"modes": "both"},
    "gboost_average": {"modes": "both", "fusion": "average"},
    "search_random": {"modes": "random"},
    "search_private": {"modes": "private"},
    "search_collaborative": {"modes": "collaborative"},
}
"""Searches by name: G-Boost, whose search itself finds which mode helps where, and ablations."""


class GBoostConfig(Section):
    """G-Boost and what it is compared with. `search`: clients/vault/answering/search.py
    `SearchConfig`, checked at the sites and before a run."""

    name: Literal["gboost"]
    """This strategy."""
    methods: tuple[str, ...]
    """Searches and the sites' own baselines, all at one budget of LLM tokens."""
    samples: int = pydantic.Field(16, ge=1)
    """Solutions that a Best-of-N or a vote may draw within the budget."""
    questions: int | None = pydantic.Field(None, ge=1)
    """Test questions of each site; null: all."""
    search: Mapping[str, Any] = {}
    """Settings of every search (clients/vault/answering/config.py)."""


def gboost(moves: Moves, config: GBoostConfig) -> None:
    """Every site tunes its SLM on its questions, then answers its test questions by each method,
    all at one budget of LLM tokens."""
    moves.teach(
        MODEL,
        lambda site: Learn(
            moves.message_id(f"learn-{MODEL}", site), moves.sites.run_id, MODEL, seed=moves.seed
        ),
    )
    for name, (method, search) in methods(config).items():
        moves.attempt(
            name,
            partial(
                moves.answer,
                name,
                model=MODEL,
                method=method,
                search=search,
                samples=config.samples,
                questions=config.questions,
            ),
        )


def methods(config: GBoostConfig) -> dict[str, tuple[str, dict[str, Any]]]:
    """What the sites are asked for by each name of `config.methods`: their method, and the settings
    of a search."""
    return {
        name: (
            "search" if name in SEARCHES else name,
            {**config.search, **SEARCHES.get(name, {})},
        )
        for name in config.methods
    }


SPEC = Spec(
    name="gboost",
    config=GBoostConfig,
    run=gboost,
    task="reasoning",
    needs=lambda config: Needs(methods=methods(config)),
    final="gboost",
    taught=(MODEL,),
    base="slm",
    question=(
        "Does a private SLM answer better together with a general LLM, at one budget of LLM tokens?"
    ),
    rivals=(
        *("slm_base", "slm", "llm", "proxy_tuning", "average"),
        *("slm_best_of_n", "llm_best_of_n", "proxy_tuning_best_of_n", "average_best_of_n"),
        *("slm_majority", "proxy_tuning_majority", "average_majority"),
    ),
    # each static fusion at the same budget of tokens
    contrasts=(("gboost", "proxy_tuning_best_of_n"), ("gboost", "average_best_of_n")),
    columns={
        "slm_base": "the SLM before it was tuned",
        "slm": "the private SLM alone",
        "llm": "the general LLM alone",
        "proxy_tuning": "static fusion of LLM and private SLM",
        "average": "the mean of both models' logits",
        "slm_best_of_n": "the private SLM's best-rewarded of several solutions",
        "llm_best_of_n": "the LLM's best-rewarded of several solutions",
        "proxy_tuning_best_of_n": "static fusion's best-rewarded of several solutions",
        "average_best_of_n": "the best-rewarded of several solutions by the mean of logits",
        "slm_majority": "a vote over several solutions of the private SLM",
        "proxy_tuning_majority": "a vote over several solutions of static fusion",
        "average_majority": "a vote over several solutions by the mean of logits",
        "search_private": "the search with the private SLM's steps alone",
        "search_collaborative": "the search with fused steps alone",
        "search_random": "the search with a coin that picks each step's mode",
        "gboost": "the search, which finds where which mode helps",
        "gboost_average": "the same search with the mean of logits as fusion",
    },
)
