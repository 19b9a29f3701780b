"""What prompts have in common is read once, and the texts are those of prompts that are read
whole."""

import pytest
import torch
from fedduet.lm.decoding import llama as llama_decoding
from fedduet.lm.decoding import prefix
from fedduet.lm.decoding.decode import Ask, decode
from fedduet.lm.decoding.llama import LlamaStepper
from fedduet.lm.decoding.prefix import Read, shared
from fedduet.lm.models.batch import pad

COMMON = tuple(range(4, 24))
ENDS = [(7,), (7, 9, 11), (8, 5, 6, 7, 9), (25,), (26, 5, 5, 5, 5, 5, 5, 5, 5)]
NEVER = frozenset({-1})


def test_how_much_is_read_once():
    one, other = (*COMMON, 7, 8), (*COMMON, 9)
    assert shared([one, other] * 2, None) == (0, 0)  # 60 tokens would be saved
    assert shared([one, other] * 3, None) == (20, 0)  # 100
    assert shared([(5, *one), other] * 9, None) == (0, 0)
    before = Read([*COMMON[:8], 30], torch.empty(0))
    assert shared([one, other] * 3, before) == (20, 8)
    assert shared([(*COMMON, *COMMON)] * 2, None) == (0, 0)
    assert shared([COMMON * 4], Read(COMMON * 4, torch.empty(0))) == (79, 79)  # one is left
    assert shared([COMMON * 4, COMMON * 5], None) == (80, 0)


@pytest.mark.parametrize("kv", [1, 2])
def test_logits_after_a_shared_beginning_equal_the_models(llama, kv, monkeypatch):
    """Also of a prompt that is a part of the others, and of rows so short that they read again what
    the others share."""
    monkeypatch.setattr(prefix, "WORTH", 1)
    model = llama(kv=kv, tied=False)
    run = LlamaStepper(model)
    rows = [(*COMMON, *end) for end in ENDS] + [COMMON]
    with torch.inference_mode():
        logits = run.prefill(*pad(rows, 0, left=True), 12)
        for step in range(4):
            plain = torch.cat([model(input_ids=torch.tensor([row])).logits[:, -1] for row in rows])
            assert torch.allclose(logits, plain, atol=1e-4), step
            rows = [(*row, 5 + step + place) for place, row in enumerate(rows)]
            logits = run.step(torch.tensor([row[-1] for row in rows]))
        # a window of the longest row's 9 own tokens, all of them texts'
        assert run.read == 20 + 9 * 6
        # places for two prompts more, the first half of whose tokens the last of those had
        run.keep(torch.tensor([0, 1, 2]))
        new = [(*COMMON[:10], 3, 3), (*COMMON[:10], 27)]
        logits = run.admit(*pad(new, 0, left=True), torch.tensor([0, 1, 1]))
        plain = [model(input_ids=torch.tensor([row])).logits[:, -1] for row in new]
        assert torch.allclose(logits, torch.cat([plain[0], plain[1], plain[1]]), atol=1e-4)
        assert run.read == 20 + 9 * 6 + 2 * 2


def test_texts_are_the_same_and_fewer_tokens_are_read(llama, monkeypatch):
    """Many texts of each prompt, more than there are places: with sharing each prompt's own end is
    read once, and their common beginning once."""
    run = LlamaStepper(llama(kv=1))
    prompts = [(*COMMON, *COMMON, 9, number) for number in range(4, 28)]
    asks = [
        Ask(prompts[i % 24], 9, 1.0, 0, 1.0, seed=i, stopped=lambda new, n=i % 7: len(new) > n)
        for i in range(96)
    ]
    together, read = decode(run, asks, NEVER, batch_size=16), run.read
    monkeypatch.setattr(llama_decoding, "shared", lambda prompts, before: (0, 0))
    assert decode(run, asks, NEVER, batch_size=16) == together
    assert run.read - read >= 24 * 42 and read <= 41 + 40 * 2
