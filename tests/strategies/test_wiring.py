"""What a strategy hands to whom, which a comparison of a run with itself would not show: seeds of
rounds, and weights from round to round."""

import json

import numpy as np
from fedduet.lm.randomness import derive
from fedduet.scripts.launching.launch import launch
from fedduet.server import cloud
from fedduet.strategies import baselines
from fedduet.strategies.baselines import REGISTRY, Baseline, available, columns
from fedduet.strategies.fdkt import FDKTConfig

from fedduet import conf

ONLY = (
    "strategy.baselines={{local: false, dp_only: false, zero_shot: {}, fedavg: {}, pooled: false}}"
)


def test_every_round_and_site_and_baseline_augments_with_a_seed_of_its_own(overrides, monkeypatch):
    seeds, real = [], cloud.augment

    def augment(shown, task, llm, domain, config, seed, **more):
        seeds.append(seed)
        return real(shown, task, llm, domain, config, seed, **more)

    monkeypatch.setattr(cloud, "augment", augment)
    launch(conf.compose([*overrides, ONLY.format("true", "false"), "strategy.rounds=2", "seed=5"]))
    phases = ("augment-0", "augment-1", "augment-zero_shot")
    expected = [derive(5, phase, site) for phase in phases for site in ("coffee", "tents")]
    assert seeds == expected and len(set(seeds)) == 6


def test_fedavg_goes_on_from_the_round_before_and_computes_no_round_again(overrides, tmp_path):
    config = conf.compose([*overrides, ONLY.format("false", "true"), "strategy.fedavg_rounds=2"])
    launch(config)
    kept = tmp_path / "run" / "checkpoint"
    first, second = (dict(np.load(kept / f"fedavg-{round}.npz")) for round in (0, 1))
    assert any(not np.array_equal(first[name], second[name]) for name in first)
    for name in ("learn-fedavg.json", "measure-fedavg.json", "fedavg-1.npz"):
        (kept / name).unlink()
    log = tmp_path / "run" / "events.jsonl"
    before = len(log.read_text().splitlines())
    launch(config)
    events = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    sent = {entry["phase"] for entry in events if entry["event"] == "sent"}
    assert "learn-fedavg-1" in sent and "learn-fedavg-0" not in sent
    # the second round began with the first one's average: from anything else it ends elsewhere
    again = dict(np.load(kept / "fedavg-1.npz"))
    assert all(np.array_equal(again[name], second[name]) for name in second)


def test_a_further_baseline_is_one_entry(monkeypatch):
    def nothing(moves, settings):
        raise AssertionError("it was not asked for")

    entry = Baseline(nothing, "records of nobody", frozenset({"demonstrations"}), on=False)
    monkeypatch.setattr(baselines, "REGISTRY", dict(REGISTRY) | {"nobody": entry})
    assert "nobody" in available("demonstrations") and "nobody" not in available("writing")
    table = columns(available("demonstrations"), {"mine": "my method"})
    assert list(table)[-3:] == ["nobody", "mine", "pooled"]
    assert table["nobody"] == "records of nobody"
    monkeypatch.setattr(FDKTConfig, "KNOWN", available("demonstrations", "writing"))
    assert not FDKTConfig(name="fdkt").wants("nobody")  # off unless the configuration says so
    assert FDKTConfig(name="fdkt", baselines={"nobody": True}).wants("nobody")
