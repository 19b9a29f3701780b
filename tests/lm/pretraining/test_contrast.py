"""Label contrast in pre-training: the loss, its gradient, which documents it takes, learning,
resuming."""

import math
from dataclasses import replace

import pytest
import torch
from fedduet.lm.pretraining.config import PretrainConfig, contrast_weight
from fedduet.lm.pretraining.contrast import (
    contrast_batches,
    contrast_items,
    contrast_loss,
    tree_scores,
)
from fedduet.lm.pretraining.corpus import Document, Source, source_from_mapping, source_from_text
from fedduet.lm.pretraining.pretrain import pretrain
from fedduet.lm.pretraining.probe import Probe, ProbeItem, text_scores
from fedduet.lm.pretraining.start import load_model, train_tokenizer
from safetensors.torch import load_file

SOURCE = Source("rows.csv", "Rating: {label}\nReview: {text}", contrast={"label": ("bad", "good")})
TEXTS = ("a great film and lovely too", "broken lamp", "a dull and weak book , dull and weak")
HEADERS = {"bad": "Rating: bad\nReview:", "good": "Rating: good\nReview:"}


def document(text: str, label: str, source: Source = SOURCE) -> Document:
    return Document(text, row={"label": label, "text": text}, source=source)


@pytest.fixture(autouse=True)
def exact_products():
    """The command lowers float32 products to bf16 for the whole process."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def tiny():
    tokenizer = train_tokenizer(
        [f"{header} {text}" for header in HEADERS.values() for text in TEXTS], 300, 128
    )
    return load_model("tiny", tokenizer, 128, 3), tokenizer


def gradient(model, value: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def log_likelihood(
    model, tokenizer, header: str, text: str, before: str = ""
) -> tuple[torch.Tensor, int]:
    front = tokenizer(before + header)["input_ids"]
    ids = tokenizer(f"{before}{header} {text}")["input_ids"]
    assert ids[: len(front)] == front
    logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    places = range(len(front), len(ids))
    return sum(logs[place - 1, ids[place]] for place in places), len(places)


@pytest.mark.parametrize("chained", [(1, 1, 1), (1, 2), (3,)])
def test_loss_and_gradient_equal_a_token_by_token_sum(tiny, chained):
    """However the documents stand in chains: in one, those before it are read under their own
    labels."""
    model, tokenizer = tiny
    labels = ("good", "bad", "bad")
    items = iter(
        contrast_items([document(*pair) for pair in zip(TEXTS, labels, strict=True)], tokenizer, 96)
    )
    got = contrast_loss(
        model, tokenizer, [[next(items) for _ in range(number)] for number in chained], 1.5, 128
    )
    text = tokens = total = crossed = 0
    before = ""
    fresh = {sum(chained[:place]) for place in range(len(chained))}
    for place, (words, label) in enumerate(zip(TEXTS, labels, strict=True)):
        before = "" if place in fresh else before + "\n\n"
        own, count = log_likelihood(model, tokenizer, HEADERS[label], words, before)
        other, _ = log_likelihood(
            model, tokenizer, HEADERS["bad" if label == "good" else "good"], words, before
        )
        before += f"{HEADERS[label]} {words}"
        text, tokens, total = text - own, tokens + count, total + 2 * count
        crossed = crossed + torch.log1p(torch.exp((other - own) / 1.5)) / 3
    assert got.text.item() == pytest.approx((text / tokens).item(), rel=1e-5)
    assert got.labels.item() == pytest.approx(crossed.item(), rel=1e-4)
    assert got.tokens == total
    one, other = gradient(model, got.labels), gradient(model, crossed)
    assert max(float(value.abs().max()) for value in other.values()) > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-5, msg=name)


def test_equal_headers_give_no_gradient(tiny):
    model, tokenizer = tiny
    pairs = zip(TEXTS, (0, 1, 0), strict=True)
    items = [
        [ProbeItem(((f"{HEADERS['bad']} {text}", len(HEADERS["bad"])),) * 2, answer)]
        for text, answer in pairs
    ]
    got = contrast_loss(model, tokenizer, items, 1.0, 128)
    assert got.labels.item() == pytest.approx(math.log(2), abs=1e-5)
    assert max(float(value.abs().max()) for value in gradient(model, got.labels).values()) < 1e-6
    text = contrast_loss(model, tokenizer, items, 1.0, 128).text
    assert max(float(value.abs().max()) for value in gradient(model, text).values()) > 1e-3


def test_texts_of_one_tree_score_as_each_alone_and_share_what_they_begin_with(tiny):
    model, tokenizer = tiny
    begun = f"{HEADERS['good']} {TEXTS[1]}\n\n"
    group = [
        (begun + f"{HEADERS[label]} {text}", len(begun + HEADERS[label]))
        for label in HEADERS
        for text in TEXTS
    ]
    lone = (f"{HEADERS['bad']} {TEXTS[2]}", len(HEADERS["bad"]))
    fed = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: fed.append(given["input_ids"].shape), with_kwargs=True
    )
    got = tree_scores(model, tokenizer, [[lone], group], 128)
    hook.remove()
    for mine, reference in zip(
        got, text_scores(model, tokenizer, [lone, *group], 128), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)
    assert fed[0][1] < sum(len(tokenizer(text)["input_ids"]) for text, _ in group) / 1.5
    cut = tree_scores(model, tokenizer, [[lone], group], 12)
    for mine, reference in zip(cut, text_scores(model, tokenizer, [lone, *group], 12), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_counts_in_neither_loss(tiny):
    model, tokenizer = tiny
    first, second = contrast_items(
        [document(TEXTS[1], "good"), document(TEXTS[2], "bad")], tokenizer, 96
    )
    limit = len(tokenizer(first.worded[1][0])["input_ids"])
    got, alone = (
        contrast_loss(model, tokenizer, [chain], 1.0, limit) for chain in ([first, second], [first])
    )
    assert (got.text.item(), got.labels.item()) == pytest.approx(
        (alone.text.item(), alone.labels.item()), rel=1e-5
    )
    assert got.tokens == alone.tokens


def test_items_hold_every_label_and_at_most_the_tokens_asked_for(tiny):
    _, tokenizer = tiny
    documents = [
        document(TEXTS[2], "good"),
        document(TEXTS[0], "so-so"),
        Document(
            TEXTS[1], row={"label": "bad", "text": TEXTS[1]}, source=replace(SOURCE, contrast={})
        ),
        Document(TEXTS[1]),
    ]
    (item,) = contrast_items(documents, tokenizer, 96)
    assert item.answer == 1
    assert item.worded == tuple(
        (f"{header} {TEXTS[2]}", len(header)) for header in HEADERS.values()
    )
    (cut,) = contrast_items(documents, tokenizer, 6)
    text = cut.worded[0][0].removeprefix(HEADERS["bad"] + " ")
    assert TEXTS[2].startswith(text + " ") and 3 <= len(tokenizer(text)["input_ids"]) <= 6


def test_an_epoch_holds_every_item_once_in_batches_of_like_length():
    items = [ProbeItem((("x" * (7 * i % 200), 0),), 0) for i in range(200)]
    batches = contrast_batches(items, 8, 0, 0)
    assert all(len(chain) == 1 for batch in batches for chain in batch)
    assert sorted(index for batch in batches for (index,) in batch) == list(range(200))
    assert {len(batch) for batch in batches} == {8}
    spread = [
        max(7 * i % 200 for (i,) in batch) - min(7 * i % 200 for (i,) in batch) for batch in batches
    ]
    assert sum(spread) / len(spread) < 40  # 8 of 200 drawn at random: 155 on average

    def flat(seed, epoch):
        return [index for batch in contrast_batches(items, 8, seed, epoch) for (index,) in batch]

    assert flat(0, 0) == flat(0, 0) != flat(0, 1)
    assert flat(0, 0) != flat(1, 0)


def test_chains_are_of_one_kind_and_of_every_length():
    domains = ["lamp", "book", "film"]
    items = [
        ProbeItem(
            tuple(
                (f"{domains[i % 3]} {label}: " + "x" * (i % 40), len(domains[i % 3]) + 5)
                for label in ("bad", "god")
            ),
            i % 2,
        )
        for i in range(600)
    ]
    batches = contrast_batches(items, 8, 0, 0, 4)
    chains = [chain for batch in batches for chain in batch]
    assert sorted(index for chain in chains for index in chain) == list(range(600))
    assert all(len({index % 3 for index in chain}) == 1 for chain in chains)
    assert max(sum(map(len, batch)) for batch in batches) <= 8
    shares = [
        sum(len(chain) == length for chain in chains) / len(chains) for length in (1, 2, 3, 4)
    ]
    assert all(0.17 < share < 0.33 for share in shares)
    # labels are mixed
    assert any(len({items[index].answer for index in chain}) == 2 for chain in chains)
    assert contrast_batches(items, 3, 0, 0, 4) and {
        len(batch) for batch in contrast_batches(items, 1, 0, 0, 4)
    } == {1}


def test_the_weight_is_full_while_documents_stand_alone_and_falls_then(reviews):
    falling = replace(reviews, contrast=0.4, final_contrast=0.25, contrast_alone=0.5)
    assert [contrast_weight(falling, part) for part in (0.0, 0.49, 0.5)] == [0.4, 0.4, 0.4]
    assert contrast_weight(falling, 0.75) == pytest.approx(0.4 * (0.25 + 0.75 / 4))
    assert contrast_weight(falling, 1.0) == pytest.approx(0.1)
    assert contrast_weight(replace(falling, contrast_alone=1.0), 1.0) == pytest.approx(0.1)
    assert {contrast_weight(reviews, part) for part in (0.0, 0.6, 1.0)} == {0.4}
    with pytest.raises(ValueError, match=r"contrast_alone is 1\.5, allowed is 0 to 1"):
        replace(reviews, contrast_alone=1.5)


def test_alternatives_are_read_and_bad_ones_refused(tmp_path):
    spec = r"path=rows.csv,template=Rating: {label}\nReview: {text},contrast.label=bad|good"
    assert source_from_text(spec) == SOURCE
    entry = {
        "path": "rows.csv",
        "template": SOURCE.template,
        "contrast": {"label": ["bad", "good"]},
    }
    assert source_from_mapping(entry, "x") == SOURCE
    for contrast in (
        {"label": ["bad"]},
        {"stars": ["bad", "good"]},
        {"label": ["bad", "good"], "text": ["a", "b"]},
    ):
        with pytest.raises(ValueError, match=r"rows\.csv: contrast is .*, allowed is one column"):
            source_from_mapping({**entry, "contrast": contrast}, "x")
    with pytest.raises(ValueError, match=r"contrast is 0\.5, and no source declares"):
        PretrainConfig(
            out=tmp_path, sources=(replace(SOURCE, contrast={}),), tokens=10, contrast=0.5
        )


@pytest.fixture
def reviews(tmp_path) -> PretrainConfig:
    """The label says which three of six words may stand in the middle; text alone teaches that
    late."""
    lines = ["label,text"]
    for label, words in {
        "1": ("fine", "great", "superb"),
        "0": ("awful", "broken", "weak"),
    }.items():
        lines += [f"{label},a {n} in {c} is {x} and {m} of it"
                  for x in words for n in ("lamp", "book", "film", "knife") for c in ("red", "blue", "green")
                  for m in ("more", "less")]  # fmt: skip
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    source = replace(SOURCE, map={"label": {"0": "bad", "1": "good"}})
    probe = Probe(
        "label",
        {label: f"Rating: {label}\nReview: {{text}}" for label in ("bad", "good")},
        documents=14,
    )
    return PretrainConfig(
        out=tmp_path / "run", start="tiny", sources=(source,), root=tmp_path, tokens=12_000, vocab_size=300, block=48,
        batch=2, learning_rate=3e-3, held_out=14, precision="fp32", probe=probe, contrast=0.4, contrast_batch=4,
        evaluate_minutes=60.0,
    )  # fmt: skip


def test_a_tiny_model_learns_to_follow_a_label_word(reviews):
    seen = []
    result = pretrain(reviews, seen.append)
    assert result.measurements[0].probe_accuracy < 0.9  # and 0.5 at the end with contrast 0
    assert result.measurements[-1].probe_accuracy == 1.0
    assert seen[-1].label_loss < 0.05
    # fluency is trained too
    assert result.measurements[-1].held_out_loss < result.measurements[0].held_out_loss - 2
    steps, contrasts = result.position.step, result.position.contrasts
    assert contrasts == steps - -(-steps // 4)  # three of four, the first is packed


def test_interrupted_equals_uninterrupted(reviews):
    reviews = replace(reviews, contrast_documents=3, contrast_alone=0.3, final_contrast=0.5)
    whole = pretrain(replace(reviews, tokens=7_000, out=reviews.out / "whole"))
    items = 144 - 14
    assert whole.position.contrasts * 4 > items  # so that an epoch's end is crossed

    def stop(step):
        if step.position.step == whole.position.step // 2:
            raise KeyboardInterrupt

    parts = replace(reviews, tokens=7_000, out=reviews.out / "parts")
    with pytest.raises(KeyboardInterrupt):
        pretrain(parts, stop)
    result = pretrain(parts)
    assert replace(result.position, seconds=0) == replace(whole.position, seconds=0)
    one, other = (load_file(r.folder / "model.safetensors") for r in (whole, result))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match="other text or settings"):
        pretrain(replace(parts, contrast=0.5))
