"""The first sentence of a report: against the best baseline, a loss said as a loss, one sign."""

from __future__ import annotations

import math

from fedduet.scripts.reporting.answer import beside, best_rival, difference, sentence, tiles
from fedduet.strategies.run.summary import spends


def summary(by_site, epsilon=8.0, curated=(), seed=0):
    models = dict.fromkeys(model for one in by_site.values() for model in one)
    values = {m: [one[m] for one in by_site.values() if m in one] for m in models}
    return {
        "strategy": "fdkt", "seed": seed, "accuracy": {m: sum(v) / len(v) for m, v in values.items()},
        "accuracy_per_client": by_site, "epsilon": {"a": epsilon}, "clients": len(by_site),
        "curated": list(curated), "seconds": {"total": 90.0}, "llm": {"new_tokens": 1200},
    }  # fmt: skip


LOST = summary(
    {
        "a": {"fdkt": 0.70, "local": 0.50, "zero_shot": 0.75, "pooled": 0.99, "fedavg": 0.98},
        "b": {"fdkt": 0.80, "local": 0.60, "zero_shot": 0.82, "pooled": 0.99, "fedavg": 0.98},
    }
)


def test_a_loss_is_a_loss_with_the_sign_of_the_method_minus_the_other():
    assert best_rival([LOST]) == "zero_shot"  # pooled and fedavg need what no site gives
    # one seed has no interval, however many sites it has
    assert sentence([LOST]) == "fdkt lost 3.5 points against zero_shot (-3.5), at epsilon 8"
    assert "Against local the method gained 20.0 points (+20.0)" in beside([LOST])
    assert "zero_shot (own records and texts the LLM writes" in beside([LOST])
    found = difference([LOST], "fdkt", "zero_shot")
    assert math.isnan(found.half) and found.seeds == 1 and not found.by_chance
    assert ("fdkt, mean over sites", "0.750", "best baseline zero_shot: 0.785") in tiles([LOST])


def test_a_gain_over_several_runs_and_one_pair_without_an_interval():
    one = summary({"a": {"fdkt": 0.9, "local": 0.6, "dp_only": 0.7}}, math.inf)
    assert (
        sentence([one])
        == "fdkt gained 20.0 points against dp_only (+20.0), with no formal guarantee"
    )
    other = summary({"a": {"fdkt": 0.8, "local": 0.6, "dp_only": 0.7}}, seed=1)
    assert "[-48.5, +78.5], within chance" in sentence([one, other])


def test_a_run_whose_llm_wrote_nothing_is_no_result():
    def wrote(phase, kept):
        return {"event": "augmented", "phase": phase, "counts": {"kept": kept}}

    sites = LOST["accuracy_per_client"]
    silent = summary(sites, curated=[wrote("augment-0", 0), wrote("augment-zero_shot", 50)])
    assert sentence([silent]).startswith("No result: the LLM wrote no text")
    assert "fdkt lost" in sentence([summary(sites, curated=[wrote("augment-0", 1)])])


def test_only_what_asks_sites_for_something_private_shows_an_epsilon():
    shown = {
        m for m in ("local", "dp_only", "zero_shot", "fedavg", "fdkt", "pooled") if spends(m, LOST)
    }
    assert shown == {"dp_only", "fdkt"}
