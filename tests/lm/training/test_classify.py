"""The loss is the stated formula, the best checkpoint comes back, soft labels teach, and a saved
model is a plain one."""

from collections import Counter

import numpy as np
import pytest
import torch
from fedduet.lm import progress
from fedduet.lm.models.load import load_classifier, trainable
from fedduet.lm.models.save import save_model
from fedduet.lm.training import classify
from fedduet.lm.training.classify import (
    Examples,
    planned_training_steps,
    predict_probabilities,
    prepare_classifier,
    train_classifier,
)
from fedduet.lm.training.config import SLMConfig
from transformers import AutoModelForSequenceClassification

GOOD, BAD = "the film was nice", "the film was awful"
FAST = {"path": "x", "precision": "fp32", "batch_size": 8, "max_tokens": 16, "learning_rate": 5e-3}
FAST |= {"head_factor": 1, "min_steps": 0}
NOTHING = Examples()


def set_of(*rows, **more):
    return Examples([text for text, _ in rows], [label for _, label in rows], **more)


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in trainable(model).values()])


def predicted(model, tokenizer, *texts):
    return predict_probabilities(model, tokenizer, texts, 16, precision="fp32")


def test_planned_steps():
    config = SLMConfig(path="x", epochs=10, batch_size=16, min_steps=20, max_steps=300)
    assert planned_training_steps(config, 50) == 32  # ceil(10 * 50 / 16)
    assert planned_training_steps(config, 4) == 20 and planned_training_steps(config, 900) == 300
    # pooled rows of four sites take four times the steps of one: a row is seen equally often
    assert planned_training_steps(config, 200, 4) == 4 * 32
    assert planned_training_steps(config, 16, 4) == 4 * 20
    assert planned_training_steps(config, 3600, 4) == 4 * 300


@pytest.mark.parametrize("order", ["together", "generated_first"])
@pytest.mark.parametrize("generated", [0, 3, 100])
def test_a_private_row_is_seen_equally_often_whatever_comes_with_it(
    bert, tokenizer, monkeypatch, order, generated
):
    """Rows are counted where the model reads them, not where they are planned."""
    seen, losses = Counter(), classify._losses

    def counting(model, rows, chosen, *rest):
        if len(rows.ids) == 12:
            seen.update(chosen)
        return losses(model, rows, chosen, *rest)

    monkeypatch.setattr(classify, "_losses", counting)
    texts = set_of(*[(BAD, 0)] * generated)
    config = SLMConfig(**FAST, epochs=8)
    report = train_classifier(
        bert(), tokenizer, set_of(*[(GOOD, 1)] * 12), texts, config, order=order
    )
    assert sum(seen.values()) == 12 * 8 and min(seen.values()) >= 7 and max(seen.values()) <= 9
    assert report.private_passes == 8
    assert report.generated_passes == (pytest.approx(96 / generated) if generated else 0)
    assert report.steps == (24 if generated and order == "generated_first" else 12)


def first_gradient(model, tokenizer, private, generated, monkeypatch, **named):
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **k: (seen.append(flat_gradient(model)), step(self, *a, **k))[1],
    )
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    train_classifier(
        model,
        tokenizer,
        private,
        generated,
        SLMConfig(**FAST, epochs=1, max_steps=1),
        **named,
    )
    return seen[0]


def flat_gradient(model):
    return torch.cat(
        [
            (p.grad if p.grad is not None else torch.zeros_like(p)).flatten()
            for p in model.parameters()
        ]
    ).clone()


def gradient_of(model, loss):
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat(
        [
            (g if g is not None else torch.zeros_like(p)).flatten()
            for g, p in zip(gradients, model.parameters(), strict=True)
        ]
    )


def no_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_loss_is_private_mean_plus_weight_times_generated_mean(
    bert, tokenizer, monkeypatch, weight
):
    model = no_dropout(bert())
    private, generated = set_of(*[(GOOD, 1)] * 12), set_of(*[(BAD, 0)] * 3)
    seen = first_gradient(model, tokenizer, private, generated, monkeypatch, weight=weight)
    model = no_dropout(bert())
    log = model(input_ids=torch.tensor(tokenizer([GOOD, BAD])["input_ids"])).logits.log_softmax(
        dim=-1
    )
    # twelve rows against three: the sizes do not matter
    expected = gradient_of(model, -log[0, 1] - weight * log[1, 0])
    assert torch.allclose(seen, expected, atol=1e-5) and expected.abs().max() > 1e-2


def test_row_weights_are_relative_and_soft_labels_replace_hard_ones(bert, tokenizer, monkeypatch):
    generated = set_of(*[(GOOD, 1)] * 4, weights=[5.0] * 4, soft_labels=[[0.3, 0.7]] * 4)
    seen = first_gradient(
        no_dropout(bert()), tokenizer, NOTHING, generated, monkeypatch, weight=0.25
    )
    model = no_dropout(bert())
    log = model(input_ids=torch.tensor(tokenizer([GOOD])["input_ids"])).logits.log_softmax(dim=-1)[
        0
    ]
    assert torch.allclose(seen, gradient_of(model, -0.3 * log[0] - 0.7 * log[1]), atol=1e-5)


def test_weightless_rows_do_not_teach(bert, tokenizer):
    model = bert()
    rows = [(GOOD, 1), (BAD, 0)] * 6 + [(GOOD, 0), (BAD, 1)] * 6
    train_classifier(
        model,
        tokenizer,
        NOTHING,
        set_of(*rows, weights=[1.0] * 12 + [0.0] * 12),
        SLMConfig(**FAST, epochs=10),
    )
    assert (predicted(model, tokenizer, GOOD, BAD).argmax(axis=1) == [1, 0]).all()


def test_soft_labels_are_learned_as_probabilities(bert, tokenizer):
    model = no_dropout(bert())
    generated = set_of(*[(GOOD, 1), (BAD, 0)] * 6, soft_labels=[[0.2, 0.8], [0.6, 0.4]] * 6)
    train_classifier(model, tokenizer, NOTHING, generated, SLMConfig(**FAST, epochs=30))
    assert np.allclose(predicted(model, tokenizer, GOOD, BAD), [[0.2, 0.8], [0.6, 0.4]], atol=0.06)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_private_and_generated_sets_both_teach(folders, tokenizer, method):
    config = SLMConfig(**FAST, method=method, epochs=20)
    model = prepare_classifier(load_classifier(folders["bert"], 3, 0, tokenizer), config)
    private, generated = set_of(*[(GOOD, 1), (BAD, 0)] * 6), set_of(*[("one two three", 2)] * 8)
    report = train_classifier(model, tokenizer, private, generated, config)
    assert (report.private_passes, report.generated_passes, report.steps) == (20, 30, 30)
    assert predicted(model, tokenizer, GOOD, BAD, "one two three").argmax(axis=1).tolist() == [
        1,
        0,
        2,
    ]


def test_accuracy_keeps_the_checkpoint_that_is_right_most_often(bert, tokenizer):
    """Training on wrong labels: validation gets worse and worse, so a checkpoint before the last is
    the best one."""
    wrong = set_of(*[(GOOD, 0), (BAD, 1)] * 8)
    validation = set_of(*[(GOOD, 1), (BAD, 0)] * (classify.VALIDATES // 2))
    config = SLMConfig(**FAST, epochs=20, evaluations=40, select="accuracy")
    best, last = bert(), bert()
    report = train_classifier(best, tokenizer, wrong, NOTHING, config, validation=validation)
    found = dict(report.validation)
    assert sorted(found) == list(range(1, 41)) and report.steps == 40 and found[40] == 0
    highest = max(found.values())
    assert highest > 0 and report.best_step == max(s for s in found if found[s] == highest)

    def accuracy(model):
        return (predicted(model, tokenizer, GOOD, BAD).argmax(axis=1) == [1, 0]).mean()

    assert accuracy(best) == highest
    config = config.model_copy(update={"select": "last"})
    report = train_classifier(last, tokenizer, wrong, NOTHING, config, validation=validation)
    assert (report.best_step, report.validation, accuracy(last)) == (40, (), 0)


def test_few_validation_rows_choose_no_checkpoint(bert, tokenizer):
    few = set_of(*[(GOOD, 1)] * (classify.VALIDATES - 1))
    config = SLMConfig(**FAST, epochs=4, select="accuracy")
    with pytest.raises(ValueError, match="accuracy needs 100 validation rows and there are fewer"):
        train_classifier(bert(), tokenizer, few, NOTHING, config, validation=few)


def test_generated_first_ends_on_the_private_set(bert, tokenizer):
    private, generated = (
        set_of(*[(GOOD, 1), (BAD, 0)] * 6),
        set_of(*[(GOOD, 0), (BAD, 1), ("fine", 1), ("dull", 0)] * 6),
    )
    config = SLMConfig(**(FAST | {"learning_rate": 1e-2}), epochs=16)
    model = bert()
    report = train_classifier(model, tokenizer, private, generated, config, order="generated_first")
    assert report.steps == 24 + 24  # each stage as long as the private rows say
    assert predicted(model, tokenizer, GOOD, BAD).argmax(axis=1).tolist() == [1, 0]
    model = bert()
    train_classifier(model, tokenizer, generated, private, config, order="generated_first")
    assert predicted(model, tokenizer, GOOD, BAD).argmax(axis=1).tolist() == [0, 1]


def test_one_seed_one_model(bert, tokenizer):
    private = set_of(*[(GOOD, 1), (BAD, 0), ("nice", 1), ("dull", 0)] * 3)

    def trained(seed):
        torch.rand(seed + 1)  # whatever was drawn before must not matter
        model = bert()
        train_classifier(model, tokenizer, private, NOTHING, SLMConfig(**FAST, epochs=3), seed=seed)
        return flat(model)

    assert torch.equal(trained(0), trained(0)) and not torch.equal(trained(0), trained(1))


def test_a_causal_classifier_learns_too(folders, tokenizer):
    model = prepare_classifier(
        load_classifier(folders["llama"], 2, 0, tokenizer), SLMConfig(**FAST)
    )
    train_classifier(
        model,
        tokenizer,
        set_of(*[(GOOD, 1), (BAD + " awful", 0)] * 6),
        NOTHING,
        SLMConfig(**FAST, epochs=15),
    )
    assert predicted(model, tokenizer, GOOD, BAD + " awful").argmax(axis=1).tolist() == [1, 0]


def test_predictions_keep_their_order_and_survive_saving(bert, tokenizer, tmp_path):
    model = bert()
    texts = [" ".join(["film", "nice", "awful", "one", "two"][: 1 + i % 5]) for i in range(23)]
    probabilities = predict_probabilities(
        model, tokenizer, texts, 16, batch_size=4, precision="fp32"
    )
    one_by_one = np.concatenate([predicted(model, tokenizer, text) for text in texts])
    assert probabilities.shape == (23, 2) and np.allclose(probabilities, one_by_one, atol=1e-5)
    assert (
        np.allclose(probabilities.sum(axis=1), 1, atol=1e-5) and np.ptp(probabilities[:5, 0]) > 1e-3
    )
    save_model(model, tokenizer, tmp_path / "kept")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept").eval()
    assert np.allclose(predicted(plain, tokenizer, *texts), probabilities, atol=1e-5)
    assert predict_probabilities(model, tokenizer, [], 16).shape == (0, 2)


def test_bad_input_is_refused(bert, tokenizer):
    model, config, good = bert(), SLMConfig(**FAST), set_of((GOOD, 1))
    for private, generated, named, match in (
        (NOTHING, NOTHING, {}, "no private and no generated"),
        (set_of((GOOD, 2)), NOTHING, {}, "private: row 0 has label 2; allowed: 0 to 1"),
        (Examples([GOOD], [1, 0]), NOTHING, {}, "1 texts but 2 labels"),
        (good, set_of((GOOD, 1), weights=[-1.0]), {}, "generated: weights must be"),
        (good, set_of((GOOD, 1), weights=[0.0]), {}, "generated: weights must be"),
        (good, set_of((GOOD, 1), soft_labels=[[0.5, 0.6]]), {}, "2 probabilities that add up to 1"),
        (good, NOTHING, {"order": "random"}, "found 'random'; allowed: together"),
        (good, NOTHING, {"weight": float("nan")}, "weight: found nan"),
    ):
        with pytest.raises(ValueError, match=match):
            train_classifier(model, tokenizer, private, generated, config, **named)
    with pytest.raises(ValueError, match="no trainable parameters"):
        train_classifier(model.requires_grad_(False), tokenizer, good, NOTHING, config)


def testschedule_rises_and_falls():
    rates = [classify.schedule(step, 10, 0.2) for step in range(10)]
    assert (
        rates[:2] == [0.5, 1.0]
        and rates == [0.5, *sorted(rates[1:], reverse=True)]
        and 0 < rates[-1] < 0.15
    )


def test_progress_is_reported_without_losses(bert, tokenizer):
    heard = []
    with progress.listening(heard.append):
        train_classifier(
            bert(),
            tokenizer,
            set_of(*[(GOOD, 1)] * 4),
            NOTHING,
            SLMConfig(**FAST, epochs=4),
            phase="train local",
        )
    assert [(p.phase, p.done, p.total, p.unit) for p in heard] == [
        ("train local", 1, 2, "steps"),
        ("train local", 2, 2, "steps"),
    ]
    assert all(not p.figures for p in heard)
