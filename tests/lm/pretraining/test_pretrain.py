"""Pre-training: packing, schedule, learning, resuming, exports, probe."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fedduet.lm.pretraining import pretrain as module
from fedduet.lm.pretraining.blocks import IGNORED, Blocks, encode_documents, epoch_blocks, pack
from fedduet.lm.pretraining.config import PretrainConfig, budget_fraction, learning_rate
from fedduet.lm.pretraining.corpus import Document, Source
from fedduet.lm.pretraining.export import Position, load_checkpoint
from fedduet.lm.pretraining.pretrain import held_out_loss, pretrain, split_documents
from fedduet.lm.pretraining.probe import Probe, probe_accuracy, probe_items, text_log_likelihoods
from fedduet.lm.pretraining.start import load_model, load_tokenizer, train_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SENTENCES = [
    f"the {noun} is {word} ."
    for noun in ("lamp", "book", "film", "knife")
    for word in ("good", "bad", "old")
]
DOCUMENTS = [f"{first} {second}" for first in SENTENCES for second in SENTENCES]


def tiny(out: Path, **changes) -> PretrainConfig:
    basis = PretrainConfig(
        out=out, start="tiny", documents=DOCUMENTS, tokens=3_000, vocab_size=300, block=32, batch=4, precision="fp32",
        learning_rate=5e-3, held_out=10,
    )  # fmt: skip
    return replace(basis, **changes)


# --- blocks ---------------------------------------------------------------------------------------


def test_pack_golden():
    documents = [
        np.full(size, name, dtype=np.int32) for name, size in ((10, 3), (20, 2), (30, 1), (40, 6))
    ]
    packed = pack(documents, 4, 0, [0, 1, 2, 3])
    # 3; 2 does not fit there; 1 goes to the fullest block it fits; 6 is cut into 4 + 2, the 2 fills
    # the second block
    assert packed.ids.tolist() == [[10, 10, 10, 30], [20, 20, 40, 40], [40, 40, 40, 40]]
    assert packed.used.tolist() == [4, 4, 4]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(3, 9))
def test_pack_loses_nothing_and_starts_blocks_with_pieces(sizes, length):
    documents = [
        np.arange(size, dtype=np.int32) + 100 * (number + 1) for number, size in enumerate(sizes)
    ]
    packed = pack(documents, length, 0, range(len(documents)))
    real = [row[:used] for row, used in zip(packed.ids, packed.used, strict=True)]
    assert sorted(np.concatenate(real)) == sorted(np.concatenate(documents))
    assert all((row[used:] == 0).all() for row, used in zip(packed.ids, packed.used, strict=True))
    # a document's start, or a cut at a multiple of length
    assert all((row[0] % 100) % length == 0 for row in real)
    assert all(packed.used[i] + packed.used[j] > length for i in range(len(real)) for j in range(i))


def test_epoch_repeats_documents_and_depends_on_seed_and_epoch():
    documents = [np.full(3, number + 1, dtype=np.int32) for number in range(20)]
    repeats = [3] * 5 + [1] * 15

    def ids(seed, epoch):
        return epoch_blocks(documents, repeats, 8, 0, seed, epoch).ids

    assert np.bincount(ids(0, 0).flatten())[1:].tolist() == [9] * 5 + [3] * 15
    assert (ids(0, 0) == ids(0, 0)).all()
    assert not (ids(0, 0) == ids(0, 1)).all()
    assert not (ids(0, 0) == ids(1, 0)).all()


def test_batch_masks_pads_even_where_pad_is_eos():
    blocks = Blocks(
        np.array([[5, 1, 1, 1], [6, 7, 1, 1]], dtype=np.int32), np.array([2, 3], dtype=np.int32)
    )
    ids, labels = blocks.batch([0, 1], torch.device("cpu"))
    assert ids.tolist() == [[5, 1, 1], [6, 7, 1]]
    assert labels.tolist() == [[5, 1, IGNORED], [6, 7, 1]]


def test_documents_are_closed_by_eos_and_decode_back():
    tokenizer = train_tokenizer(["naïve café ☕", *DOCUMENTS], 300, 128)
    texts = ["naïve café ☕ 日本", "the lamp is good ."]
    encoded = encode_documents(tokenizer, texts)
    assert [int(ids[-1]) for ids in encoded] == [tokenizer.eos_token_id] * 2
    assert [tokenizer.decode(ids[:-1]) for ids in encoded] == texts
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


# --- schedule and budget --------------------------------------------------------------------------


def test_learning_rate_golden(tmp_path):
    config = tiny(tmp_path, learning_rate=1.0, final_learning_rate=0.1, warmup=0.2)
    rates = [learning_rate(config, fraction) for fraction in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.55, 0.1])


def test_the_first_budget_to_be_used_up_counts(tmp_path):
    config = tiny(tmp_path, minutes=2.0, tokens=1000)
    assert budget_fraction(config, Position(tokens=250, seconds=90)) == 0.75
    assert budget_fraction(config, Position(tokens=900, seconds=90)) == 0.9
    assert budget_fraction(config, Position(tokens=9000)) == 1.0


def test_minutes_budget_ends_with_the_cosine(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 3))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    steps = []
    result = pretrain(tiny(tmp_path, tokens=None, minutes=3.0, held_out=0), steps.append)
    assert 180 <= result.position.seconds <= 190
    assert steps[-1].fraction == 1.0
    assert steps[-1].learning_rate == pytest.approx(5e-4)
    rates = [step.learning_rate for step in steps[1:]]
    assert len(rates) > 20 and rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": None}, "minutes and tokens are both missing"),
        ({"documents": ()}, "either documents or sources"),
        ({"precision": "int8"}, "'int8', allowed are auto, bf16, fp32"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3', allowed is a number"),
        ({"batch": 2.5}, "batch is 2.5, allowed is a whole number"),
        ({"start": "huge"}, "start is 'huge'.*sizes: tiny"),
    ],
)
def test_bad_settings_are_one_sentence(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        pretrain(tiny(tmp_path, **changes))


# --- training -------------------------------------------------------------------------------------


def test_held_out_documents_are_drawn_by_the_seed_and_never_trained_on():
    documents = [Document(str(number), may_hold_out=number < 50) for number in range(100)]
    trained, held = split_documents(documents, 8, 0)
    assert len(held) == 8 and all(int(document.text) < 50 for document in held)
    assert sorted(int(d.text) for d in trained + held) == list(range(100))
    assert split_documents(documents, 8, 0)[1] == held != split_documents(documents, 8, 1)[1]
    assert len(split_documents(documents, 90, 0)[1]) == 10  # a tenth of all at most


def test_learns_and_writes_a_plain_folder_that_stops(tmp_path):
    config = tiny(tmp_path, tokens=25_000, weights="float16", command="fedduet pretrain --out x")
    result = pretrain(config)
    first, last = result.measurements[0].held_out_loss, result.held_out_loss
    assert first == pytest.approx(math.log(300), abs=0.15)
    # a document is two even choices among 12 sentences, 11 tokens are predicted: at best 2 ln 12 /
    # 11 = 0.45 nats each
    assert 0.42 < last < 0.60
    stored = load_file(result.folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    tokenizer = AutoTokenizer.from_pretrained(result.folder)
    model = AutoModelForCausalLM.from_pretrained(result.folder, dtype=torch.float32)
    made = model.generate(
        **tokenizer("the lamp is", return_tensors="pt"), max_new_tokens=30, do_sample=False
    )
    text = tokenizer.decode(made[0], skip_special_tokens=True)
    assert made[0, -1] == tokenizer.eos_token_id and text in DOCUMENTS
    card = (result.folder / "README.md").read_text()
    for words in (
        "Started from: tiny",
        "134 trained on",
        "10 held out",
        "fedduet pretrain --out x",
        "seed: 0",
    ):
        assert words in card
    assert (tmp_path / "latest").resolve() == result.folder.resolve()


def test_held_out_loss_equals_a_token_by_token_sum(tmp_path):
    tokenizer = train_tokenizer(DOCUMENTS, 300, 128)
    model = load_model("tiny", tokenizer, 128, 3).eval()
    encoded = encode_documents(tokenizer, DOCUMENTS[:7])
    packed = pack(encoded, 40, tokenizer.pad_token_id, range(7))
    total, count = 0.0, 0
    model.requires_grad_(False)
    for row, used in zip(packed.ids, packed.used, strict=True):
        logs = model(torch.tensor(row[None, :used].astype(np.int64))).logits[0].log_softmax(-1)
        total -= sum(float(logs[place - 1, row[place]]) for place in range(1, used))
        count += int(used) - 1
    assert held_out_loss(model, packed, 3, torch.device("cpu")) == pytest.approx(
        total / count, rel=1e-5
    )


def test_an_epoch_shows_every_document_once(tmp_path):
    lengths = sum(len(document.split()) + 1 for document in DOCUMENTS)  # a token a word, and EOS
    position = pretrain(tiny(tmp_path, tokens=lengths, held_out=0)).position
    assert (position.epoch, position.block, position.tokens) == (1, 0, lengths)


class StopAt:
    def __init__(self, step: int) -> None:
        self.step, self.seen = step, []

    def __call__(self, step) -> None:
        self.seen.append(step.position.step)
        if step.position.step == self.step:
            raise KeyboardInterrupt


def test_interrupted_twice_equals_uninterrupted(tmp_path):
    whole = pretrain(tiny(tmp_path / "whole", tokens=6_000))
    parts = tiny(tmp_path / "parts", tokens=6_000)
    assert whole.position.epoch >= 1  # so that an epoch's end is crossed
    for stop in (7, whole.position.step - 5):
        with pytest.raises(KeyboardInterrupt):
            pretrain(parts, StopAt(stop))
    rest = StopAt(-1)
    result = pretrain(parts, rest)
    assert rest.seen[0] == whole.position.step - 4
    assert replace(result.position, seconds=0) == replace(whole.position, seconds=0)
    one, other = (load_file(r.folder / "model.safetensors") for r in (whole, result))
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = StopAt(-1)
    # nothing is left to do
    assert pretrain(parts, again).position == result.position and again.seen == []


def test_a_larger_budget_goes_on_and_other_text_is_refused(tmp_path):
    first = pretrain(tiny(tmp_path, tokens=1_000))
    second = pretrain(tiny(tmp_path, tokens=2_000))
    assert second.position.step > first.position.step and second.position.tokens >= 2_000
    with pytest.raises(ValueError, match="other text or settings"):
        pretrain(tiny(tmp_path, documents=DOCUMENTS[:-1]))
    with pytest.raises(ValueError, match="other text or settings"):
        pretrain(tiny(tmp_path, seed=1))


def test_a_torn_checkpoint_file_is_never_read(tmp_path):
    pretrain(tiny(tmp_path, tokens=500))
    (tmp_path / "checkpoint" / "state.pt.unfinished").write_bytes(b"torn")
    assert load_checkpoint(tmp_path / "checkpoint")["position"]["tokens"] >= 500


def test_latest_is_a_whole_model_at_every_moment(tmp_path):
    seen = []

    def look(step):
        if step.position.step < 2:
            return
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "latest", dtype=torch.float32)
        AutoTokenizer.from_pretrained(tmp_path / "latest")
        seen.append(model.get_input_embeddings().weight.detach().clone())
        # the last step has no export of its own yet
        assert len(list((tmp_path / "exports").iterdir())) <= 2

    pretrain(tiny(tmp_path, tokens=800, checkpoint_minutes=0.0), look)
    assert len(seen) >= 5
    assert all(not torch.equal(before, after) for before, after in pairwise(seen[:-1]))


def test_going_on_from_a_folder_starts_where_that_model_ended(tmp_path):
    first = pretrain(tiny(tmp_path / "a", tokens=4_000))
    second = pretrain(tiny(tmp_path / "b", start=str(first.folder), tokens=500))
    assert second.measurements[0].held_out_loss == pytest.approx(first.held_out_loss, abs=1e-4)
    assert second.held_out_loss < first.measurements[0].held_out_loss - 1
    one, other = (AutoTokenizer.from_pretrained(r.folder) for r in (first, second))
    assert one.get_vocab() == other.get_vocab()


def test_a_folder_without_eos_is_refused(tmp_path):
    result = pretrain(tiny(tmp_path / "a", tokens=100))
    tokenizer = AutoTokenizer.from_pretrained(result.folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "no-eos")
    with pytest.raises(ValueError, match="no EOS token"):
        load_tokenizer(str(result.folder), str(tmp_path / "no-eos"), [], 300, 128)


def test_bf16_computes_nearly_the_same_and_keeps_float32_weights(tmp_path):
    one, other = (pretrain(tiny(tmp_path / name, precision=name)) for name in ("fp32", "bf16"))
    assert (
        1e-6 < abs(one.measurements[0].held_out_loss - other.measurements[0].held_out_loss) < 0.02
    )
    assert other.held_out_loss == pytest.approx(one.held_out_loss, abs=0.1)
    assert {tensor.dtype for tensor in load_file(other.folder / "model.safetensors").values()} == {
        torch.float32
    }
    assert {
        tensor.dtype
        for tensor in load_checkpoint(tmp_path / "bf16" / "checkpoint")["model"].values()
    } == {torch.float32}


# --- probe ----------------------------------------------------------------------------------------

TEMPLATES = {"bad": "Rating: bad\nReview: {text}", "good": "Rating: good\nReview: {text}"}


def test_text_log_likelihood_counts_only_the_text_and_ignores_pads():
    tokenizer = train_tokenizer([*DOCUMENTS, *TEMPLATES.values()], 400, 128)
    model = load_model("tiny", tokenizer, 128, 0).eval().requires_grad_(False)
    header, texts = "Rating: good\nReview: ", ["the lamp is good .", "old"]
    scores = text_log_likelihoods(
        model, tokenizer, [(header + text, len(header.rstrip())) for text in texts], 64
    )
    for text, score in zip(texts, scores, strict=True):
        front = tokenizer(header.rstrip(), add_special_tokens=False)["input_ids"]
        ids = tokenizer(header + text, add_special_tokens=False)["input_ids"]
        assert ids[: len(front)] == front
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(logs[place - 1, ids[place]]) for place in range(len(front), len(ids)))
        assert float(score) == pytest.approx(expected, rel=1e-4)


def test_probe_finds_a_model_that_follows_its_header(tmp_path):
    lines = ["label,text"]
    words = {"1": ("fine", "great", "superb", "lovely"), "0": ("awful", "broken", "weak", "dull")}
    for label, chosen in words.items():
        lines += [
            f"{label},a {x} {n} and {y} too"
            for x in chosen
            for y in chosen
            for n in ("lamp", "book", "film")
        ]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    source = Source(
        "rows.csv",
        "Rating: {label}\nReview: {text}",
        map={"label": {"0": "bad", "1": "good"}},
        repeat=2,
    )
    probe = Probe("label", TEMPLATES, documents=8)
    config = tiny(
        tmp_path / "run",
        documents=(),
        sources=(source,),
        root=tmp_path,
        probe=probe,
        tokens=25_000,
        block=48,
    )
    measurements = pretrain(config).measurements
    assert measurements[-1].probe_accuracy == 1.0
    swapped = replace(probe, templates={"good": TEMPLATES["bad"], "bad": TEMPLATES["good"]})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "run" / "final", dtype=torch.float32
    ).eval()
    row = {"label": "good", "text": "a great film and lovely too"}
    items = probe_items(
        swapped, [Document("", row=row), Document("", row={**row, "label": "unknown"})]
    )
    assert len(items) == 1
    assert probe_accuracy(model, tokenizer, items, 48) == 0.0


def test_probe_that_fits_no_document_is_refused():
    documents = [Document("", row={"label": "good", "text": "x"})]
    with pytest.raises(ValueError, match="probe: no held-out document has 'stars' among bad, good"):
        probe_items(Probe("stars", TEMPLATES), documents)
    templates = {name: "{domain}\n" + template for name, template in TEMPLATES.items()}
    with pytest.raises(
        ValueError, match="template 'bad' names the column 'domain', a row has label, text"
    ):
        probe_items(Probe("label", templates), documents)


def test_probe_templates_must_hold_the_text():
    with pytest.raises(ValueError, match=r"probe\.templates\.b is 'B', it must hold \{text\}"):
        Probe("label", {"a": "A {text}", "b": "B"})
