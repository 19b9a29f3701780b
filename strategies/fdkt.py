"""FDKT (Li et al. 2024, arXiv 2405.14212): DP demonstrations up, LLM-augmented data down, a better
SLM at every site."""

from __future__ import annotations

from fedduet.strategies.config import FDKTConfig
from fedduet.strategies.dp_only import dp_only
from fedduet.strategies.fedavg import fedavg
from fedduet.strategies.local import local
from fedduet.strategies.pooled import pooled
from fedduet.strategies.run.moves import Moves, Texts, merge, shared_by_all
from fedduet.strategies.zero_shot import zero_shot


def fdkt(moves: Moves, config: FDKTConfig) -> Texts:
    """METHODS, FDKT steps 1 to 6. The privacy budget is planned over all rounds together; data of
    the rounds adds up.

    Returns the demonstrations that the judge kept, by site.
    """
    demonstrations, kept, data = {}, {}, {}
    for round in range(config.rounds):
        written = moves.synthesize(round, config.rounds, config.demonstrations_per_label)
        chosen = moves.curate(round, written)
        demonstrations = merge(demonstrations, written)
        kept = merge(kept, chosen)
        data = merge(data, moves.augment(f"augment-{round}", chosen))
        given = shared_by_all(data, moves.sites.domains) if config.share == "all" else data
        moves.learn("fdkt" if round == config.rounds - 1 else f"fdkt-round-{round}", given)

    baselines = {
        "local": lambda: local(moves),
        "dp_only": lambda: dp_only(moves, demonstrations),
        "zero_shot": lambda: zero_shot(moves),
        "fedavg": lambda: fedavg(moves, config.fedavg_rounds, config.fedavg_part),
        "pooled": lambda: pooled(moves),
    }
    for name, baseline in baselines.items():
        if config.wants(name):
            moves.attempt(name, baseline)
    return kept
