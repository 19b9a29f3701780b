"""Baselines that strategies are measured against in the same run: a registry of functions over the
moves, each with what it needs and what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pydantic
from fedduet.conf.check import Section
from fedduet.strategies.run.moves import Moves
from fedduet.strategies.run.texts import Texts, first_of_label, merge
from fedduet.wire.codec import Arrays
from fedduet.wire.messages import LabelledTexts, Learn, Learned

DEMONSTRATIONS, WRITING = "demonstrations", "writing"
PUBLIC_ROWS = 2000  # of public text that a site is sent, at most [O]


@dataclass(frozen=True)
class Baseline:
    """`run` gets the moves and the strategy's settings. `needs`: what the strategy must have:
    DEMONSTRATIONS (sites released texts before), WRITING (`moves.augment` and its settings).
    `on`: whether it runs where the configuration does not say."""

    run: Callable[[Moves, Any], None]
    meaning: str
    needs: frozenset[str] = frozenset()
    on: bool = True


class Baselines(Section):
    """What a strategy's section has of baselines: those of the same run by name, on unless switched
    off, and FedAvg's settings."""

    KNOWN: ClassVar[tuple[str, ...]] = ()
    fedavg_rounds: int = pydantic.Field(3, ge=1)
    """Rounds of averaging of the baseline FedAvg, which are one training in all."""
    baselines: Mapping[str, bool] = {}
    """Which baselines run, by name; those not mentioned do unless they are off by default."""

    @pydantic.field_validator("baselines")
    @classmethod
    def _known(cls, value: Mapping[str, bool]) -> Mapping[str, bool]:
        unknown = sorted(set(value) - set(cls.KNOWN))
        if unknown:
            raise ValueError(
                f"unknown baseline {', '.join(unknown)}; allowed: {', '.join(cls.KNOWN)}"
            )
        return value

    def wants(self, baseline: str) -> bool:
        """Whether a baseline runs; one that is not mentioned runs unless the registry has it
        off."""
        entry = REGISTRY.get(baseline)
        return self.baselines.get(baseline, entry is None or entry.on)


Own = Mapping[str, Callable[[], None]]


def run_baselines(moves: Moves, settings: Baselines, own: Own | None = None) -> None:
    """Every wanted baseline of the section, in the order of `KNOWN`: those of the strategy's `own`,
    the others from the registry."""
    for name in settings.KNOWN:
        if settings.wants(name):
            shared = lambda name=name: REGISTRY[name].run(moves, settings)  # noqa: E731
            moves.attempt(name, (own or {}).get(name, shared))


def available(*has: str) -> tuple[str, ...]:
    """The registry's baselines for a strategy that has these of what they may need."""
    return tuple(name for name, one in REGISTRY.items() if one.needs <= set(has))


def columns(names: Sequence[str], own: Mapping[str, str]) -> dict[str, str]:
    """A strategy's table: registered baselines, then its `own` methods, then the upper bound."""
    shared = {name: REGISTRY[name].meaning for name in names if name in REGISTRY}
    last = {name: shared.pop(name) for name in ("pooled",) if name in shared}
    return {**shared, **own, **last}


# -- The baselines ---------------------------------------------------------------------------------


def local(moves: Moves, _: Any) -> None:
    """Nothing leaves, nothing comes."""
    moves.learn("local")


def dp_only(moves: Moves, settings: Any) -> None:
    """The demonstrations as released, before any judge, and where samples cost no privacy as many
    as the LLM writes texts."""
    moves.learn(
        "dp_only", merge(*moves.released.values()), weight=settings.weight, order=settings.order
    )


def zero_shot(moves: Moves, settings: Any) -> None:
    """The "ZeroGen" case: as many texts as after demonstrations; costs no privacy."""
    data = moves.augment("augment-zero_shot", None)
    moves.learn("zero_shot", data, weight=settings.weight, order=settings.order)


def no_judge(moves: Moves, settings: Any) -> None:
    """FDKT without step 3: the LLM writes after all demonstrations it would have judged."""
    _after(moves, settings, "fdkt_no_judge", _shown(moves, settings))


def other_site(moves: Moves, settings: Any) -> None:
    """FDKT after another site's demonstrations, of the same epsilon: does the domain matter?"""
    shown = _shown(moves, settings)
    sites = sorted(shown)
    turned = {site: shown[other] for site, other in zip(sites, sites[1:] + sites[:1], strict=True)}
    _after(moves, settings, "fdkt_other_site", turned)


def _shown(moves: Moves, settings: Any) -> Texts:
    parts = moves.released.values()
    return merge(*(first_of_label(part, settings.demonstrations_per_label) for part in parts))


def _after(moves: Moves, settings: Any, model: str, demonstrations: Texts) -> None:
    data = moves.augment(f"augment-{model}", demonstrations)
    moves.learn(model, data, weight=settings.weight, order=settings.order)


def public(moves: Moves, settings: Any) -> None:
    """What the server may have beside its LLM: labelled text, given to the SLMs directly."""
    data = moves.public()
    if data is None or not len(data):
        moves.run.event("warning", message="baseline public: the task names no public text")
        return
    given = dict.fromkeys(moves.sites.names, _some(data, PUBLIC_ROWS, moves.seed))
    moves.learn("public", given, weight=settings.weight, order=settings.order)


def _some(data: LabelledTexts, number: int, seed: int) -> LabelledTexts:
    order = np.random.default_rng(seed).permutation(len(data))[:number]
    return LabelledTexts([data.texts[i] for i in order], [data.labels[i] for i in order])


def llm_zero_shot(moves: Moves, _: Any) -> None:
    """The LLM itself classifies test texts, by the likeliest label. Only a simulation shows it
    these."""
    phase = "measure-llm-zero_shot"
    found = moves.run.once(phase, lambda: moves.on_llm(phase, lambda: dict(moves.classify())))
    if found:
        moves.accuracy["llm_zero_shot"] = found
        moves.run.event("accuracy", model="llm_zero_shot", by_site=found)


def pooled(moves: Moves, _: Any) -> None:
    """Trained once, at the first site's worker, and measured on every site's test split. Only a
    simulation can do that."""

    def request(site: str) -> Learn:
        return Learn(
            moves.message_id("learn-pooled", site),
            moves.sites.run_id,
            "pooled",
            scope="pooled",
            seed=moves.seed,
        )

    moves.teach("pooled", request, only=moves.sites.names[:1])
    moves.measure("pooled", scope="pooled")


def fedavg(moves: Moves, settings: Any) -> None:
    """FedAvg (McMahan et al. 2017) of the SLMs' shared weights, LoRA or full: every round all sites
    do a part of a local training from the average, all rounds together one whole; the last average
    is measured at every site."""
    rounds: int = settings.fedavg_rounds
    average: Arrays = {}

    def request(site: str, round: int, **options: Any) -> Learn:
        phase = f"learn-fedavg-{round}"
        return Learn(
            moves.message_id(phase, site), moves.sites.run_id, "fedavg", seed=moves.seed, **options
        )

    def one_round(round: int, start: Arrays) -> Arrays:
        options = {"part": 1 / rounds, "begun": round / rounds, "share_weights": True}
        answers = moves.ask(
            f"learn-fedavg-{round}", lambda site: request(site, round, **options), arrays=start
        )
        told = {site: learned for site, (learned, _) in answers.items()}
        moves.remember(f"trained-fedavg-{round}", Learned, lambda: told)
        return weighted_mean(
            [arrays for _, arrays in answers.values()],
            [learned.private_units for learned in told.values()],
        )

    for round in range(rounds):
        average = moves.run.once_arrays(f"fedavg-{round}", partial(one_round, round, average))
        moves.trained("fedavg", moves.remember(f"trained-fedavg-{round}", Learned, dict))
    # only loads the average at every site, so that it can be measured
    moves.teach(
        "fedavg",
        lambda site: request(site, rounds, private=False, share_weights=False),
        arrays=average,
    )
    moves.measure("fedavg")


def weighted_mean(parts: Sequence[Arrays], rows: Sequence[int]) -> Arrays:
    """Mean of each array over `parts`, weighted by `rows`; float64 sums, the arrays' own dtype
    back."""
    share = np.asarray(rows, dtype=np.float64) / np.sum(rows)
    return {
        name: (
            sum(
                w * part[name].astype(np.float64) for w, part in zip(share, parts, strict=True)
            ).astype(parts[0][name].dtype)
        )
        for name in parts[0]
    }


REGISTRY: Mapping[str, Baseline] = {
    "local": Baseline(local, "a site's own records alone"),
    "dp_only": Baseline(
        dp_only,
        "own records and the site's own DP-synthetic texts, no LLM",
        frozenset({DEMONSTRATIONS}),
    ),
    "zero_shot": Baseline(
        zero_shot,
        "own records and texts the LLM writes from the domain's name alone",
        frozenset({WRITING}),
    ),
    "public": Baseline(public, "own records and labelled public text, no LLM"),
    "llm_zero_shot": Baseline(
        llm_zero_shot, "the LLM itself, shown the test texts: a simulation's"
    ),
    "fdkt_no_judge": Baseline(
        no_judge,
        "as fdkt, after all demonstrations, unjudged",
        frozenset({DEMONSTRATIONS, WRITING}),
        on=False,
    ),
    "fdkt_other_site": Baseline(
        other_site,
        "as fdkt, after another site's demonstrations",
        frozenset({DEMONSTRATIONS, WRITING}),
        on=False,
    ),
    "fedavg": Baseline(fedavg, "weights averaged over sites: no privacy guarantee"),
    "pooled": Baseline(pooled, "everybody's records together, which only a simulation can have"),
}
"""A further baseline is one entry: every strategy that has what it needs offers it by name."""
