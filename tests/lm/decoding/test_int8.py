"""Products in int8 against their references, a whole model's logits, and the choice by
measurement."""

import logging

import pytest
import torch
from fedduet.lm.decoding import int8, stepper
from fedduet.lm.decoding.decode import Ask, decode
from fedduet.lm.decoding.int8 import Int8Product, int8_pays
from fedduet.lm.decoding.llama import LlamaStepper
from fedduet.lm.models.batch import pad
from fedduet.lm.models.precision import has_fast_int8

pytestmark = pytest.mark.skipif(not has_fast_int8(), reason="no VNNI")


def test_a_product_is_that_of_rounded_numbers_and_of_large_channels_as_they_are():
    coins = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 40, generator=coins) for rows in (24, 9))
    x[:, 3], x[2] = 1000 * x[:, 3], 0.0
    way = Int8Product(weight, torch.tensor([3]))
    rest, others = x.clone().index_fill_(1, torch.tensor([3]), 0), weight.clone()
    others[:, 3] = 0
    scale, sizes = others.abs().amax(1, keepdim=True) / 127, rest.abs().amax(1, keepdim=True) / 127
    expected = (
        (rest / sizes.clamp_min(1e-30)).round() * sizes @ ((others / scale).round() * scale).T
    )
    expected += x[:, 3:4] @ weight[:, 3:4].T
    assert torch.allclose(way(x), expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(way(x)[:2], way(x[:2]))  # few rows take another way to the same bits
    plain = Int8Product(weight, torch.tensor([], dtype=torch.int64))
    exact = x @ weight.T
    assert (way(x) - exact).norm() < 0.02 * (plain(x) - exact).norm()


@pytest.mark.parametrize("kv", [1, 2])
def test_logits_are_close_to_those_of_the_model(llama, kv):
    model = llama(kv=kv)
    rows = [[5, 6, 9], [7], [10, 11, 12, 13, 14, 15]]
    with torch.inference_mode():
        exact = torch.cat([model(input_ids=torch.tensor([row])).logits[:, -1] for row in rows])
        near = LlamaStepper(model, int8=True).prefill(*pad(rows, 0, left=True), 4)
    error = (near - exact).norm() / exact.norm()
    assert 1e-5 < error < 0.05
    run = LlamaStepper(model, int8=True)
    asks = [Ask(tuple(row), 9, seed=i) for i, row in enumerate(rows * 3)]
    assert decode(run, asks, frozenset(), batch_size=5) == [
        decode(run, [ask], frozenset())[0] for ask in asks
    ]


@pytest.mark.parametrize("faster", [True, False])
def test_the_measured_choice_is_used_and_said(llama, monkeypatch, caplog, faster):
    """The measurement's clock says that one of the two is faster."""
    monkeypatch.setattr(stepper, "MEASURED_FROM", 1)
    monkeypatch.setattr(
        int8, "_seconds", lambda way, x: 1.0 + (isinstance(way, Int8Product) != faster)
    )
    int8_pays.cache_clear()
    with caplog.at_level(logging.INFO):
        run = stepper.stepper(llama(), precision="auto")
    int8_pays.cache_clear()
    assert isinstance(run.layers[0].qkv, Int8Product) == faster
    name = "int8" if faster else "torch.float32"
    assert caplog.messages == [
        f"generation in {name}: a product takes {1000 if faster else 2000}.000 ms in int8 and"
        f" {2000 if faster else 1000}.000 ms in torch.float32"
    ]


def test_the_choice_is_made_where_it_can_matter(llama, gpt2, monkeypatch):
    monkeypatch.setattr(stepper, "int8_pays", lambda *shape: True)
    run = stepper.stepper
    assert not isinstance(run(llama(), precision="auto").layers[0].out, Int8Product)  # too small
    assert isinstance(run(llama(), precision="int8").layers[0].out, Int8Product)
    assert not isinstance(run(llama(), precision="fp32").layers[0].out, Int8Product)
    assert isinstance(run(gpt2(), precision="int8"), stepper.AnyStepper)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert not isinstance(run(llama(), precision="int8").layers[0].out, Int8Product)
