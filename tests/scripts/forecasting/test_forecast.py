"""`fedduet check`: the budget to the last digit, counts as a run has them, and a sentence for what
will be refused."""

import json

import pytest
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.conf.check import ConfigError
from fedduet.scripts.forecasting import pilot
from fedduet.scripts.forecasting.forecast import forecast, main
from fedduet.scripts.forecasting.work import Rows, work
from fedduet.scripts.launching.launch import launch

from fedduet import conf

OFF = (
    "strategy.baselines={local: true, dp_only: false, zero_shot: false, fedavg: false, pooled:"
    " false}"
)
WORLD = Rows(dict.fromkeys("abcd", 40), dict.fromkeys("abcd", 400), 2, dict.fromkeys("abcd", 40))


def test_counts_of_the_default_run():
    found = work(conf.compose([]), WORLD)
    # 4 sites, 2 labels, 100 texts, asked twice as often
    assert (found["augment"].units, found["augment_plain"].units) == (1600, 1600)
    assert found["curate"].units == 256 and found["measure"].units == 6 * 1600
    # 200 steps a site, whatever comes beside its 40 rows, and a step with texts costs two: dp_only,
    # fdkt, zero_shot; FedAvg's rounds are one training in all; pooled as many as four sites
    assert found["learn"].units == pytest.approx(4 * (200 + 3 * 400 + 200) + 4 * 200)
    two = work(conf.compose(["strategy.rounds=2", "strategy.baselines.zero_shot=false"]), WORLD)
    assert two["augment"].units == 3200 and two["augment"].calls == 8 and "augment_plain" not in two


def test_counts_of_crosslm():
    found = work(conf.compose(["strategy=crosslm"]), WORLD)
    # ceil(24 * 1.3) = 32 requests of a label in each round, then all again
    assert found["write"].units == 3 * 4 * 2 * 32 + 3 * 256
    assert found["tune_generator"].units == 3 * 4 * 6  # epochs times 192 texts in batches of 32
    assert found["measure_llm"].units == 4 * 200 * (1 + 3 + 2)
    assert (
        work(
            conf.compose(["strategy=gboost"])
            | {"strategy": conf.compose(["strategy=gboost"])["strategy"]},
            WORLD,
        )
        is None
    )
    none = work(conf.compose(["strategy=crosslm", "strategy.tuning=none"]), WORLD)
    assert "tune_task" not in none and none["measure_llm"].units == 800


def test_a_forecast_is_what_the_run_then_has(overrides, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDDUET_CACHE", str(tmp_path / "cache"))
    asked = [*overrides, OFF, "strategy.rounds=2", "strategy.augment.max_rounds=1"]
    on_progress = forecast(conf.compose(asked))
    assert (
        not (tmp_path / "run").exists()
        and on_progress.seconds > 0
        and 2**28 < on_progress.memory < 2**34
    )
    summary = launch(conf.compose(asked))
    assert {site: spend.epsilon for site, spend in on_progress.sites.items()} == summary["epsilon"]
    receipts = _plain(summary)["receipts"].values()
    assert {spend.noise_multiplier for spend in on_progress.sites.values()} == {
        one["noise_multiplier"] for one in receipts
    }
    assert (
        on_progress.requests == summary["llm"]["requests"]
        and on_progress.new_tokens <= on_progress.limit
    )
    assert on_progress.new_tokens == pytest.approx(summary["llm"]["new_tokens"], rel=0.5)
    capsys.readouterr()

    def again(*_, **__):
        raise AssertionError("a pilot ran although it is in the cache")

    monkeypatch.setattr("subprocess.run", again)
    assert main([*asked, "seed=1", "--json", f"run.folder={tmp_path}/other"]) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == on_progress.requests
    with pytest.raises(ConfigError, match=r"the site coffee would refuse: .*spent"):
        forecast(
            conf.compose([*asked, f"federation.state_folder={tmp_path}/run/sites"]), calibrate=False
        )
    # asking charged nothing
    ledger = Ledger(tmp_path / "run" / "sites" / "coffee" / "ledger.jsonl", 8.0, 1e-5)
    assert len(ledger.entries()) == 2


def test_a_run_by_private_prediction_is_forecast_and_says_what_ran(overrides):
    asked = [
        *overrides,
        OFF,
        "strategy.augment.max_rounds=1",
        "generator.method=private_prediction",
        "generator.minimum_tokens=1",
        "generator.prediction={tokens: 4, examples: 1, prompt_tokens: 32}",
    ]
    found = forecast(conf.compose(asked), calibrate=False)
    summary = launch(conf.compose(asked))
    assert {site: spend.epsilon for site, spend in found.sites.items()} == summary["epsilon"]
    assert {one["mechanism"] for one in _plain(summary)["receipts"].values()} == {
        "private-prediction"
    }


def test_contexts_are_counted_ahead():
    asked = ["generator.method=private_prediction", "strategy.demonstrations_per_label=16"]
    found = work(conf.compose(asked), WORLD)
    # 40 records, 2 labels: 20 contexts are expected and 20 + 2 sqrt(20) have room, with the public
    # one 30 rows for each of 16 texts
    assert found["synthesize"].units == 4 * 2 * 16 * 30 / 8


def _plain(summary):
    return json.loads(json.dumps(summary, default=vars))


def test_scores_of_every_kind_are_planned_as_the_vault_plans_them(overrides):
    models = [entry for entry in overrides if ".path=" in entry]
    base = [
        *models,
        "strategy=crosslm",
        "task.clients=[coffee]",
        "federation=inprocess",
        "run.folder=runs/none",
    ]
    on_progress = {
        kind: forecast(conf.compose([*base, f"privacy.feedback={kind}"]), calibrate=False)
        for kind in ("none", "votes", "gaussian")
    }
    assert on_progress["none"].sites["coffee"].epsilon == float("inf")
    for kind in ("votes", "gaussian"):
        (spend,) = on_progress[kind].sites.values()
        assert 7.9 < spend.epsilon <= 8 and spend.noise_multiplier > 0.5


def test_pilots_shrink_counts_and_keep_models():
    config = conf.compose([])
    small, large = (pilot.shrunk(config, share, 40, 400) for share in (0.0, 0.25))
    assert (
        small["strategy"]["augment"]["per_label"] == 2
        and large["strategy"]["augment"]["per_label"] == 25
    )
    assert (
        small["llm"] == config["llm"] and small["slm"]["batch_size"] == config["slm"]["batch_size"]
    )
    # the configuration itself is as it was
    assert config["strategy"]["augment"]["per_label"] == 100


def test_what_cannot_work_is_said(overrides):
    models = [entry for entry in overrides if ".path=" in entry]
    with pytest.raises(ConfigError, match="--fast; allowed: --quick"):
        main(["--fast"])
    with pytest.raises(ConfigError, match=r"privacy\.epsilon: found 0"):
        main(["privacy.epsilon=0", "--quick"])
    with pytest.raises(
        ConfigError,
        match="the site coffee would refuse: epsilon: found 9 for the run; allowed: at most 8",
    ):
        main(
            [
                *models,
                "privacy.epsilon=9",
                "privacy.policy.epsilon_per_run=8",
                "--quick",
                "federation=inprocess",
            ]
        )
