"""`fedduet audit` on tiny models: three audits under the claim, and a mechanism without noise that
is caught."""

import fedduet.lm.dp.dpsgd
import fedduet.scripts.attacking.audit
import fedduet.scripts.attacking.audit_scores
import pytest
from fedduet.conf.check import ConfigError
from fedduet.lm.randomness import SeededNoise
from fedduet.scripts.attacking.audit import main


@pytest.fixture
def small(overrides, monkeypatch):
    noise = SeededNoise(5)  # a bound holds with 95 % confidence; the tests are to give one answer
    for module in (fedduet.scripts.attacking.audit, fedduet.scripts.attacking.audit_scores):
        monkeypatch.setattr(module, "SecureNoise", lambda: noise)
    kept = [
        entry
        for entry in overrides
        if entry.split("=")[0].split(".")[0] in ("task", "slm", "generator")
    ]
    return [
        *kept,
        "task.rows_per_client=40",
        "privacy.epsilon=1",
        "generator.logical_batch=16",
        "generator.epochs=6",
    ]


def test_all_bounds_stay_under_the_claim(small, capsys):
    assert main(["--canaries", "240", *small]) == 0
    printed = capsys.readouterr().out
    assert "white box" in printed and "black box" in printed and "audit of coffee" in printed


def test_a_mechanism_without_noise_is_refuted(small, capsys, monkeypatch):
    whole = fedduet.lm.dp.dpsgd.set_noisy_gradients
    monkeypatch.setattr(
        fedduet.lm.dp.dpsgd,
        "set_noisy_gradients",
        lambda p, total, sigma, expected, source: whole(p, total, 0.0, expected, source),
    )
    assert main(["--kinds", "worst", "--canaries", "240", *small]) == 1
    assert "not the one that was" in " ".join(capsys.readouterr().out.split())


def test_bad_arguments_are_named(small):
    with pytest.raises(ConfigError, match="--kinds: found gray; allowed: worst, natural, release"):
        main(["--kinds", "gray", *small])
    with pytest.raises(ConfigError, match="--client: found 'tea'; allowed: coffee, tents"):
        main(["--client", "tea", *small])
    with pytest.raises(ConfigError, match="--canaries: found 3"):
        main(["--canaries", "3", *small])
