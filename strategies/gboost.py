"""G-Boost (Fan et al. 2025, arXiv 2503.10367): a private SLM and a general LLM answer together,
guided by process reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedduet.strategies.config import GBoostConfig
from fedduet.strategies.run.moves import Moves
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


def gboost(moves: Moves, config: GBoostConfig) -> None:
    """Every site tunes its SLM on its questions, then answers its test questions by each method,
    all at one budget of LLM tokens."""
    request = {"model": MODEL, "seed": moves.seed}
    moves.teach(
        MODEL,
        lambda site: Learn(moves.message_id(f"learn-{MODEL}", site), moves.sites.run_id, **request),
    )
    for name in config.methods:
        search = {**config.search, **SEARCHES.get(name, {})}
        method = "search" if name in SEARCHES else name
        moves.attempt(
            name,
            lambda name=name, method=method, search=search: moves.answer(
                name,
                model=MODEL,
                method=method,
                search=search,
                samples=config.samples,
                questions=config.questions,
            ),
        )
