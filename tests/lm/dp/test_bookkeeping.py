"""Book-keeping against one backward pass per example: architectures, tied and reused weights,
checkpointing, bf16, and what it refuses."""

import pytest
import torch
import transformers
from fedduet.lm.dp.bookkeeping import book_keeping_engine
from fedduet.lm.dp.clipped_sums import ClippedSum, loss_batch
from fedduet.lm.dp.weight_uses import LayerInput, Product
from fedduet.lm.models.batch import Encoded
from fedduet.lm.models.load import attach_lora, trainable
from torch.nn import functional

V = 64
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
GPT2 = {
    "vocab_size": V,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "initializer_range": 0.2,
}
SHORT = SIZES | {"num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0}
SHAPES = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, SHORT),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, SHORT),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, SHORT | {"head_dim": 16}),
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, GPT2),
    "bert": (transformers.BertLMHeadModel, transformers.BertConfig, SIZES | {"is_decoder": True}),
}


def made(shape, method="full", tied=True):
    torch.manual_seed(0)
    model_class, config_class, sizes = SHAPES[shape]
    model = model_class(config_class(**sizes, tie_word_embeddings=tied)).eval().requires_grad_(True)
    if method == "full":
        return model
    adapted = attach_lora(model, 4, 8)
    for name, parameter in trainable(adapted).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted


def rows(lengths=(5, 9, 14, 3, 8)):
    draw = torch.Generator().manual_seed(3)
    # tokens come again
    return [
        Encoded(tuple(torch.randint(2, V // 4, (length,), generator=draw).tolist()))
        for length in lengths
    ]


def reference(model, clip_place=2):
    """(clipped sums, clip): every row alone, through the model as anybody calls it; some rows are
    clipped, some are not."""
    parameters, gradients = trainable(model), []
    for row in rows():
        ids = torch.tensor([row.ids])
        loss = functional.cross_entropy(
            model(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:]
        )
        gradients.append(
            [
                g.double()
                for g in torch.autograd.grad(
                    loss, list(parameters.values()), materialize_grads=True
                )
            ]
        )
    norms = [float(torch.cat([g.flatten() for g in row]).norm()) for row in gradients]
    clip = sorted(norms)[clip_place]
    sums = [
        sum(row[i] * min(1.0, clip / norm) for row, norm in zip(gradients, norms, strict=True))
        for i in range(len(parameters))
    ]
    return dict(zip(parameters, sums, strict=True)), clip


def clipped(model, clip, autocast=False):
    total = ClippedSum(trainable(model), clip)
    with book_keeping_engine(model, autocast) as add:
        for part in (rows()[:2], rows()[2:]):
            add(loss_batch(part, 0, True), total)
    return total.sums


def distance(found, expected, clip):
    """Of the two sums, over all parameters, in units of the clip: what one row may move at most."""
    return (
        float(
            torch.cat(
                [(found[name].double() - expected[name]).flatten() for name in expected]
            ).norm()
        )
        / clip
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_sum_is_that_of_a_loop_over_rows(shape, method, tied):
    if shape == "bert" and not tied and method == "full":
        pytest.skip("transformers' BERT then has a bias that nothing uses")
    model = made(shape, method, tied)
    expected, clip = reference(model)
    assert distance(clipped(model, clip), expected, clip) < 1e-5
    assert all(
        parameter.grad is None and parameter.requires_grad
        for parameter in trainable(model).values()
    )


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_nothing(shape, reentrant):
    model = made(shape)
    expected, clip = reference(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert distance(clipped(model, clip), expected, clip) < 1e-5
    assert not model.training


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bf16_is_close_and_one_row_still_moves_the_sum_by_the_clip_at_most(method):
    model = made("llama", method)
    expected, clip = reference(model)
    assert 0 < distance(clipped(model, clip, autocast=True), expected, clip) < 0.1
    small = ClippedSum(trainable(model), 0.01)
    with book_keeping_engine(model, True) as add:
        add(loss_batch(rows()[2:3], 0, True), small)
    norm = float(torch.cat([value.flatten() for value in small.sums.values()]).norm())
    assert 0.0095 < norm <= 0.01 * (1 + 1e-6)  # the bound on rounding costs a little, and holds


def test_a_layer_used_twice_counts_twice():
    model = made("llama")
    layers = model.model.layers
    layers[1] = layers[0]
    expected, clip = reference(model)
    assert distance(clipped(model, clip), expected, clip) < 1e-5


def test_a_row_that_is_not_finite_adds_nothing():
    model = made("llama", tied=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[V - 1] = float("inf")
    total, alone = ClippedSum(trainable(model), 1.0), ClippedSum(trainable(model), 1.0)
    with book_keeping_engine(model, False) as add:
        add(loss_batch([Encoded((5, 6, V - 1, 7)), Encoded((5, 6, 7, 8))], 0, True), total)
        add(loss_batch([Encoded((5, 6, 7, 8))], 0, True), alone)
        assert (
            distance(total.sums, alone.sums, 1.0)
            < 1e-6
            < distance(total.sums, {n: 0 * v for n, v in total.sums.items()}, 1.0)
        )


class Convolved(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Conv1d(32, 32, 1)

    def forward(self, x, *_, **__):
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


def test_a_layer_it_does_not_know_is_refused_by_name_before_training():
    model = made("llama")
    model.model.layers[1].mlp = Convolved()
    with (
        pytest.raises(
            ValueError, match=r"model\.layers\.1\.mlp\.inner\.weight.*Conv1d.*engine=vmap"
        ),
        book_keeping_engine(model, False),
    ):
        pass


def test_a_weight_used_behind_its_back_is_found_out():
    """Gemma scales its embeddings inside a subclass of Embedding: the name says nothing, the trial
    does."""
    config = transformers.Gemma2Config(**SHORT, head_dim=16)
    model = transformers.Gemma2ForCausalLM(config).eval()
    with (
        pytest.raises(ValueError, match=r"does not see all.*embed_tokens"),
        book_keeping_engine(model, False),
    ):
        pass
    model.requires_grad_(False)
    for layer in model.model.layers:
        layer.requires_grad_(True)
    with book_keeping_engine(model, False):
        pass  # what is trained is known


def test_in_bf16_a_row_adds_the_same_whatever_stands_beside_it():
    """A sum that were rounded to bf16 would lose a small row beside a large one."""
    draw = torch.Generator().manual_seed(0)
    g, a = (torch.randn(2, 6, 32, generator=draw).bfloat16() for _ in range(2))
    g[1] *= 256  # exactly so in bf16
    use = Product(g, LayerInput(a, torch.bfloat16), turned=False)
    alone, beside, both = torch.zeros(32, 32), torch.zeros(32, 32), torch.zeros(32, 32)
    for total, factors in ((alone, (1.0, 0.0)), (beside, (0.0, 1.0)), (both, (1.0, 1.0))):
        use.add(total, torch.tensor(factors))
    exact = g[0].double().T @ a[0].double()
    assert float((alone.double() - exact).norm() / exact.norm()) < 1e-6
    assert float((both - beside - alone).norm() / alone.norm()) < 1e-4
