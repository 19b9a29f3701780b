"""Clipped sums against one backward pass per example, by every engine, with padding and
micro-batches."""

import pytest
import torch
from fedduet.lm.dp.bookkeeping import book_keeping_engine
from fedduet.lm.dp.clipped_sums import ClippedSum, hooks_engine, loss_batch, row_losses, vmap_engine
from fedduet.lm.models.batch import Encoded, encode_document
from fedduet.lm.models.load import attach_lora, trainable
from torch.nn import functional

TEXTS = [
    "the film was nice",
    "a very dull book",
    "fine",
    "one two three four five six seven eight nice",
    "it was",
]
ENGINES = {"vmap": vmap_engine, "hooks": hooks_engine, "book_keeping": book_keeping_engine}


def rows_of(tokenizer):
    return [encode_document(tokenizer, "label good : ", text, 32) for text in TEXTS]


def prepared(model, method):
    if method == "full":
        return model.requires_grad_(True)
    adapted = attach_lora(model, 4, 8)
    for name, parameter in trainable(adapted).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    return adapted


def brute_force(model, rows, clip, learn_context):
    """Each row alone, without padding, its loss written out; clipped and added up in float64."""
    parameters = trainable(model)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    norms = []
    for row in rows:
        ids = torch.tensor([row.ids])
        logits = model(input_ids=ids).logits[0, :-1]
        each = functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        learned = each if learn_context else each[max(row.context - 1, 0) :]
        gradients = torch.autograd.grad(learned.mean(), list(parameters.values()))
        norm = torch.cat([g.flatten() for g in gradients]).double().norm()
        norms.append(float(norm))
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += gradient.double() * min(1.0, clip / float(norm))
    return total, norms


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_clipped_sum_equals_one_backward_per_example(tokenizer, llama, gpt2, shape, method, engine):
    model = prepared(llama() if shape == "llama" else gpt2(), method)
    rows = rows_of(tokenizer)
    _, norms = brute_force(model, rows, 1.0, True)
    clip = sorted(norms)[2]  # some rows are clipped, some are not
    expected, _ = brute_force(model, rows, clip, True)
    total = ClippedSum(trainable(model), clip)
    with ENGINES[engine](model, False) as add:
        for part in (rows[:2], rows[2:]):  # micro-batches, padded
            add(loss_batch(part, tokenizer.pad_token_id, True), total)
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        assert torch.allclose(total.sums[name].double(), value, atol=1e-5 * scale, rtol=1e-5), name
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("engine", list(ENGINES))
def test_control_code_can_be_left_out_of_the_loss(tokenizer, llama, engine):
    model = prepared(llama(kv=2, tied=False), "full")
    rows = rows_of(tokenizer)
    with_code, _ = brute_force(model, rows, 1e9, True)
    without, _ = brute_force(model, rows, 1e9, False)
    total = ClippedSum(trainable(model), 1e9)
    with ENGINES[engine](model, False) as add:
        add(loss_batch(rows, tokenizer.pad_token_id, False), total)
    name = "lm_head.weight"
    assert torch.allclose(total.sums[name].double(), without[name], atol=1e-4)
    assert not torch.allclose(with_code[name], without[name], atol=1e-2)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_row_never_changes_anothers_gradient(tokenizer, llama, engine):
    model = prepared(llama(), "lora")
    first, *others = rows_of(tokenizer)
    with ENGINES[engine](model, False) as add:
        alone, others_only, together = (ClippedSum(trainable(model), 0.5) for _ in range(3))
        add(loss_batch([first], 0, True), alone)
        add(loss_batch(others, 0, True), others_only)
        add(loss_batch([first, *others], 0, True), together)
    for name in together.sums:
        assert torch.allclose(
            together.sums[name] - others_only.sums[name], alone.sums[name], atol=1e-5
        )


@pytest.mark.parametrize("engine", list(ENGINES))
def test_sensitivity_is_the_clip(tokenizer, llama, engine):
    """One row more moves the sum by at most C, and by exactly C when its gradient is larger."""
    model = prepared(llama(), "full")
    with ENGINES[engine](model, False) as add:
        for clip in (0.01, 0.2):
            total = ClippedSum(trainable(model), clip)
            add(loss_batch(rows_of(tokenizer)[:1], 0, True), total)
            norm = torch.cat([value.flatten() for value in total.sums.values()]).norm()
            assert float(norm) == pytest.approx(clip, rel=1e-4)


def test_pads_are_not_in_the_loss(tokenizer, llama):
    """Neither the id nor the number of pads changes a row's loss: it is the mean over its own next
    tokens."""
    model = llama()
    row = Encoded((5, 6, 9, 10, 1))
    long = Encoded((5, 6, 9, 10, 1, *[11] * 20))
    losses = []
    for rows, pad_id in (([row], 0), ([row, long], 0), ([row, long], 17), ([row, long], 1)):
        batch = loss_batch(rows, pad_id, True)
        with torch.no_grad():
            losses.append(
                float(row_losses(model(input_ids=batch.ids).logits, batch.ids, batch.weights)[0])
            )
    with torch.no_grad():
        by_hand = functional.cross_entropy(
            model(input_ids=torch.tensor([row.ids])).logits[0, :-1], torch.tensor(row.ids[1:])
        )
    assert losses == pytest.approx([float(by_hand)] * 4, rel=1e-5)


def test_rows_with_nothing_to_learn_and_broken_rows_add_nothing(tokenizer, llama):
    total = ClippedSum(trainable(llama()), 1.0)
    model = llama()
    with vmap_engine(model, False) as add:
        add(loss_batch([Encoded((5, 6, 7), context=3), Encoded((5,))], 0, False), total)
    assert all(not value.any() for value in total.sums.values())
    small = ClippedSum({"w": torch.nn.Parameter(torch.zeros(2))}, 1.0)
    norms = small.add(
        {"w": torch.tensor([[3.0, 4.0], [float("nan"), 1.0], [float("inf"), 0.0], [0.3, 0.4]])}
    )
    assert (
        torch.allclose(small.sums["w"], torch.tensor([0.6 + 0.3, 0.8 + 0.4]))
        and float(norms[0]) == 5.0
    )


@pytest.mark.parametrize("engine", list(ENGINES))
def test_bf16_is_close(tokenizer, llama, engine):
    model = prepared(llama(), "lora")
    sums = []
    for autocast in (False, True):
        total = ClippedSum(trainable(model), 1.0)
        with ENGINES[engine](model, autocast) as add:
            add(loss_batch(rows_of(tokenizer), 0, True), total)
        sums.append(torch.cat([value.flatten() for value in total.sums.values()]))
    assert sums[1].dtype == torch.float32
    assert 0 < float((sums[0] - sums[1]).norm() / sums[0].norm()) < 0.05
