"""What the noise does to the generator: under a tiny epsilon it learns nothing of its records,
without noise it learns them."""

import torch
from fedduet.clients.vault import synthesis
from fedduet.clients.vault.synthesis import write_demonstrations
from fedduet.lm.dp.clipped_sums import loss_batch, row_losses
from fedduet.lm.models.batch import encode_document
from fedduet.lm.models.load import trainable
from fedduet.lm.randomness import SeededNoise
from fedduet.tasks.data.load import load_client
from fedduet.wire.messages import Synthesize, Synthesized

LEARNING = {"tuning": "full", "epochs": 15.0, "learning_rate": 1e-2, "attempts": 1}


def mean_loss(model, tokenizer, controls, texts):
    rows = [
        encode_document(tokenizer, control, text, 64)
        for control, text in zip(controls, texts, strict=True)
    ]
    batch = loss_batch(rows, tokenizer.pad_token_id, True)
    with torch.no_grad():
        return float(row_losses(model(input_ids=batch.ids).logits, batch.ids, batch.weights).mean())


def watch_losses(monkeypatch):
    """(before, after) mean losses of the private texts for every training to come."""
    losses, train = [], synthesis.train_generator

    def watched(model, tokenizer, controls, texts, *rest):
        before = mean_loss(model, tokenizer, controls, texts)
        report = train(model, tokenizer, controls, texts, *rest)
        losses.append((before, mean_loss(model, tokenizer, controls, texts)))
        return report

    monkeypatch.setattr(synthesis, "train_generator", watched)
    return losses


def test_a_tiny_epsilon_teaches_nothing_and_an_infinite_one_does(site, monkeypatch):
    losses = watch_losses(monkeypatch)
    for folder, epsilon, policy in (
        ("tiny", 0.02, {}),
        ("open", float("inf"), {"allow_unprotected": True}),
    ):
        answer = site(folder, policy, generator=LEARNING).synthesize(
            Synthesize("m", "r", 0, 1, 3, epsilon)
        )
        assert isinstance(answer, Synthesized)
        assert answer.receipt.mechanism == ("none" if folder == "open" else "dp-sgd")
    (noisy_before, noisy_after), (before, after) = losses
    assert noisy_before == before
    assert noisy_after > 0.97 * before and after < 0.8 * before


def test_under_huge_noise_the_weights_are_a_matter_of_the_noise_alone(site, monkeypatch):
    """The same noise over other records ends in nearly the same weights; without noise the records
    decide."""
    vault = site(generator=LEARNING | {"epochs": 3.0})
    coffee, tents = (load_client(vault.config.task, name, 0).train for name in ("coffee", "tents"))
    ends = []
    train = synthesis.train_generator

    def watched(model, *rest):
        start = torch.cat(
            [parameter.detach().flatten().clone() for parameter in trainable(model).values()]
        )
        report = train(model, *rest)
        ends.append(
            torch.cat([parameter.detach().flatten() for parameter in trainable(model).values()])
            - start
        )
        return report

    monkeypatch.setattr(synthesis, "train_generator", watched)

    def moved_apart(sigma):
        ends.clear()
        for records in (coffee, tents):
            write_demonstrations(
                records,
                range(len(records)),
                vault.task,
                "coffee",
                vault.config.generator,
                sigma,
                1,
                SeededNoise(0),
                0,
            )
        return float((ends[0] - ends[1]).norm() / ends[0].norm())

    assert moved_apart(1e6) < 0.01 and moved_apart(0.0) > 0.2
