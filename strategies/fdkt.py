"""FDKT (Li et al. 2024, arXiv 2405.14212): DP demonstrations up, LLM-augmented data down, a better
SLM at every site."""

from __future__ import annotations

from typing import Literal

import pydantic
from fedduet.strategies.baselines import (
    DEMONSTRATIONS,
    WRITING,
    Baselines,
    available,
    columns,
    run_baselines,
)
from fedduet.strategies.run.moves import Moves
from fedduet.strategies.run.spec import GuidedTexts, Spec
from fedduet.strategies.run.texts import Texts, merge, shared_by_all


class FDKTConfig(GuidedTexts, Baselines):
    """FDKT and its baselines."""

    KNOWN = available(DEMONSTRATIONS, WRITING)
    name: Literal["fdkt"]
    """This strategy."""
    rounds: int = pydantic.Field(1, ge=1)
    """Exchanges; the privacy budget is planned over all of them together."""
    demonstrations_per_label: int = pydantic.Field(32, ge=1)
    """DP-synthetic texts of each label that a site releases in a round."""
    share: Literal["domain", "all"] = "domain"
    """What a site receives: data of its own domain, or everybody's."""
    weight: float = pydantic.Field(1.0, ge=0)
    """lambda of L = CE(own records) + lambda * CE(LLM's texts) [our choice]."""
    order: Literal["together", "generated_first"] = "together"
    """together, or generated_first: generated texts, then the site's own."""


def fdkt(moves: Moves, config: FDKTConfig) -> Texts:
    """METHODS, FDKT steps 1 to 6. The privacy budget is planned over all rounds together; data of
    the rounds adds up.

    Returns the demonstrations that the judge kept, by site.
    """
    kept: Texts = {}
    data: Texts = {}
    # dp_only gets as many texts as fdkt
    written_here = config.augment.get("per_label", 0) if config.wants("dp_only") else 0
    extra = max(0, written_here - config.demonstrations_per_label)
    for round in range(config.rounds):
        written = moves.synthesize(round, config.rounds, config.demonstrations_per_label, extra)
        chosen = moves.curate(round, written)
        kept = merge(kept, chosen)
        data = merge(data, moves.augment(f"augment-{round}", chosen))
        everybody = config.share == "all"
        given = shared_by_all(data, moves.sites.domains) if everybody else data
        name = "fdkt" if round == config.rounds - 1 else f"fdkt-round-{round}"
        weight, order = config.weight, config.order
        moves.learn(name, given, weight=weight, order=order, domain_first=everybody)
    run_baselines(moves, config)
    return kept


MEANING = "own records and texts the LLM writes after DP demonstrations"
SPEC = Spec(
    name="fdkt",
    config=FDKTConfig,
    run=fdkt,
    final="fdkt",
    question=(
        "Do private SLMs get better by texts that an LLM writes after DP-synthetic demonstrations,"
        " while the private text stays put?"
    ),
    contrasts=(("fdkt", "zero_shot"), ("fdkt", "dp_only")),
    columns=columns(FDKTConfig.KNOWN, {"fdkt": MEANING}),
)
