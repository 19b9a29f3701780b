"""Private in, public out: what is called public in the vault is the same whatever one unit
holds."""

import numpy as np
import pytest
from fedduet.clients.vault import feedback, synthesis, vault
from fedduet.scripts.attacking.interface import POLICIES, TEXTS
from fedduet.scripts.attacking.neighbours import KINDS, neighbours, site_of
from fedduet.wire.messages import LabelledTexts, Learn, Score, Synthesize

from tests.privacy.test_game import config  # noqa: F401

DATA = LabelledTexts(list(TEXTS), [1, 0, 0, 1])


def public_quantities(opened, monkeypatch):
    """Everything that is called public, by name, of one round of messages."""
    found = {}
    of, opinions, scorer = feedback.View.of, feedback.opinions, feedback.train_scorer
    demonstrations, train = synthesis.train_generator, vault.SLM.train

    def view(texts):
        made = of(texts)
        found.setdefault("views", []).append((made.weights.tobytes(), made.centre.tobytes()))
        return made

    def opinion(noisy, texts, labels, classes, sigma, units):
        found["opinions"] = (texts.tobytes(), labels.tobytes(), classes, sigma, units)
        return opinions(noisy, texts, labels, classes, sigma, units)

    def trained(vectors, labels, owners, made, classes, sigma, steps, randomness):
        # what the noisy sum is divided by: with gradients of 0 and noise of 1 a step shows it
        ones = np.ones((1, made.centre.size))
        with monkeypatch.context() as inner:
            inner.setattr(feedback, "noisy", lambda total, *_: np.ones_like(total))
            step = scorer(vectors, labels, owners, made, classes, sigma, 1, randomness)
        found["divisor"] = float((step.head @ ones.T)[0, 0])
        found["scorer"] = (classes, sigma, steps)
        return scorer(vectors, labels, owners, made, classes, sigma, steps, randomness)

    def generator(model, tokenizer, controls, texts, settings, sigma, randomness, owners):
        report = demonstrations(
            model, tokenizer, controls, texts, settings, sigma, randomness, owners
        )
        found["generator"] = (sigma, report.steps, report.sample_rate)
        return report

    def learning(self, request, split, arrays, private_rows, seed):
        found.setdefault("rows", []).append(private_rows)
        done = train(self, request, split, arrays, private_rows, seed)
        found.setdefault("trained", []).append(done)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(feedback.View, "of", staticmethod(view))
        patch.setattr(feedback, "opinions", opinion)
        patch.setattr(feedback, "train_scorer", trained)
        patch.setattr(synthesis, "train_generator", generator)
        patch.setattr(vault.SLM, "train", learning)
        answers = [
            opened.synthesize(Synthesize("s", "r", 0, 1, 2, 3.0)),
            opened.learn(Learn("l", "r", "own", DATA))[0],
            opened.learn(Learn("p", "r", "part", DATA, part=0.4))[0],
            opened.score(Score("v", "r", "own", DATA, 5.0, feedback="votes")),
            opened.score(Score("g", "r", "own", DATA, 8.0, feedback="gaussian")),
        ]
    receipts = [answer.receipt for answer in (answers[0], *answers[3:])]
    found["receipts"] = [
        (one.noise_multiplier, one.sample_rate, one.steps, one.clip, one.records, one.epsilon)
        for one in receipts
    ]
    found["units"] = (opened._units, opened._test_units)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_one_unit_moves_nothing_that_is_called_public(kind, config, tmp_path, monkeypatch):  # noqa: F811
    sides = [
        public_quantities(
            vault.Vault(site_of(tmp_path / name, config, rows, kind, POLICIES["private"])),
            monkeypatch,
        )
        for name, rows in zip(("left", "right"), neighbours(kind), strict=True)
    ]
    assert sides[0].keys() == sides[1].keys() >= {"views", "opinions", "divisor", "generator"}
    assert len(sides[0]["views"]) == 2 and sides[0] == sides[1]
    # the divisor is the number of units
    units = sides[0]["units"][0]
    size = len(sides[0]["views"][0][1]) // 8
    assert sides[0]["divisor"] == pytest.approx(-feedback.LEARNING_RATE * size / units)
