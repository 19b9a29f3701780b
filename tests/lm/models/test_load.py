"""Folders are checked before they are loaded; loading is repeatable, quiet, and private training
leaves the cache alone."""

import json
import shutil

import pytest
import torch
from fedduet.conf.check import ConfigError
from fedduet.lm.models.folder import check_model_folder
from fedduet.lm.models.load import (
    END,
    attach_lora,
    fit_embeddings,
    forget,
    load_causal_lm,
    load_classifier,
    load_tokenizer,
    merged,
    trainable,
)
from fedduet.lm.models.save import save_model, set_trainable_arrays, trainable_arrays
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)


def copy_of(folder, target, without=()):
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*without))
    return target


def test_check_says_what_is_wrong_with_a_folder(folders, tmp_path):
    check_model_folder(folders["llama"], "generator.path", causal=True)
    check_model_folder("org/name", "slm.path")  # hub names pass
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    pickled = copy_of(folders["llama"], tmp_path / "pickled", ["*.safetensors"])
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    for path, match in (
        ("", "slm.path: found an empty path"),
        (tmp_path / "absent", "absent', which is not a folder"),
        (tmp_path / "file", "file', which is not a folder"),
        (copy_of(folders["llama"], tmp_path / "a", ["config.json"]), "has no config.json"),
        (tmp_path / "broken", "is not a JSON object"),
        (pickled, r"no \*.safetensors weights; found pytorch_model.bin; only safetensors"),
        (copy_of(folders["llama"], tmp_path / "b", ["tokenizer.json"]), "has no tokenizer"),
    ):
        with pytest.raises(ConfigError, match=match):
            check_model_folder(path, "slm.path")
    with pytest.raises(ConfigError, match="'bert', which cannot generate text"):
        check_model_folder(folders["bert"], "generator.path", causal=True)


def test_a_causal_folder_without_a_head_is_refused(folders, tmp_path):
    folder = copy_of(folders["llama"], tmp_path / "body", ["*.safetensors"])
    AutoModelForCausalLM.from_pretrained(folders["llama"]).model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"lack lm_head\.weight"):
        load_causal_lm(folder)


def test_pad_and_end_tokens(folders, tokenizer, tmp_path):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>")
    with_end = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>", eos_token="<eos>"
    )
    paths = {}
    for name, one in (("bare", bare), ("end", with_end)):
        paths[name] = copy_of(folders["llama"], tmp_path / name, ["tokenizer*", "special*"])
        one.save_pretrained(paths[name])
    assert load_tokenizer(paths["end"]).pad_token_id == 1
    padded = load_tokenizer(paths["bare"])
    assert (
        padded.pad_token == "<|pad|>"
        and padded.eos_token_id is None
        and padded.pad_token_id == len(tokenizer)
    )
    generating = load_tokenizer(paths["bare"], generates=True)
    assert generating.eos_token == END and generating.pad_token == END
    model = load_causal_lm(paths["bare"], tokenizer=generating)
    assert (
        model.get_input_embeddings().weight.shape[0]
        == len(tokenizer) + 1
        == model(input_ids=torch.tensor([[5]])).logits.shape[-1]
    )
    known = load_causal_lm(paths["bare"]).get_input_embeddings().weight
    assert torch.allclose(model.get_input_embeddings().weight[-1], known.mean(dim=0))
    assert model.generation_config.eos_token_id == generating.eos_token_id


def test_the_cached_copy_is_never_handed_out(folders):
    first = load_causal_lm(folders["llama"])
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    attach_lora(first, 2, 4)
    fresh = load_causal_lm(folders["llama"])
    assert not any("lora" in name for name, _ in fresh.named_parameters())
    direct = AutoModelForCausalLM.from_pretrained(folders["llama"])
    for name, parameter in direct.named_parameters():
        assert torch.equal(parameter, fresh.state_dict()[name]), name
    # tied weights stay tied in the copy
    assert fresh.lm_head.weight is fresh.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_heads_come_from_the_seed(folders, tokenizer, name):
    torch.manual_seed(1)
    first = load_classifier(folders[name], 3, seed=0, tokenizer=tokenizer)
    state = torch.random.get_rng_state()
    forget()
    torch.manual_seed(2)
    again = load_classifier(folders[name], 3, seed=0, tokenizer=tokenizer)
    other = load_classifier(folders[name], 3, seed=1, tokenizer=tokenizer)
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())  # the global stream is left alone
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    differ = [
        n
        for (n, a), (_, b) in zip(first.named_parameters(), other.named_parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert differ == (["classifier.weight"] if name == "bert" else ["score.weight"])
    assert first.config.pad_token_id == 0 and first.config.num_labels == 3
    with torch.no_grad():  # the row's last real token decides, wherever the pads begin
        short = first(input_ids=torch.tensor([[5, 6, 9]]), attention_mask=torch.ones(1, 3)).logits
        padded = first(
            input_ids=torch.tensor([[5, 6, 9, 0, 0]]),
            attention_mask=torch.tensor([[1, 1, 1, 0, 0]]),
        ).logits
    assert torch.allclose(short, padded, atol=1e-5)


def test_adapters_start_from_the_seed_and_change_nothing(folders):
    ids = torch.tensor([[5, 6, 9]])
    base = load_causal_lm(folders["llama"])
    with torch.no_grad():
        before = base(input_ids=ids).logits
        adapted = attach_lora(base, 4, 8, seed=3)
        assert torch.equal(adapted(input_ids=ids).logits, before)
    again = attach_lora(load_causal_lm(folders["llama"]), 4, 8, seed=3)
    other = attach_lora(load_causal_lm(folders["llama"]), 4, 8, seed=4)
    names = list(trainable(adapted))
    # A and B, 7 linear layers, 2 blocks; no head
    assert len(names) == 2 * 7 * 2 and all("lora" in name for name in names)
    assert all(torch.equal(trainable(adapted)[name], trainable(again)[name]) for name in names)
    assert not torch.equal(trainable(adapted)[names[0]], trainable(other)[names[0]])
    only = attach_lora(load_causal_lm(folders["llama"]), 4, 8, targets=["q_proj"])
    assert len(trainable(only)) == 4
    for parameter in trainable(adapted).values():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        folded = merged(adapted)
        assert torch.allclose(
            folded(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-4
        )
        assert not torch.allclose(folded(input_ids=ids).logits, before, atol=1e-2)
    assert type(folded).__name__ == "LlamaForCausalLM" and len(trainable(adapted)) == len(names)


def test_saved_classifiers_load_plainly(folders, tokenizer, tmp_path):
    model = attach_lora(load_classifier(folders["bert"], 3, seed=0), 2, 4)
    for parameter in trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.2)
    save_model(model, tokenizer, tmp_path / "kept")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept").eval()
    ids = torch.tensor([[3, 7, 12, 4]])
    with torch.no_grad():
        assert torch.allclose(plain(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)
    kept = load_classifier(tmp_path / "kept", 3, seed=99)  # a trained head is not drawn again
    assert torch.equal(kept.classifier.weight, plain.classifier.weight)
    assert len(load_tokenizer(tmp_path / "kept")) == len(tokenizer)


def test_trainable_arrays_round_trip(folders):
    model = attach_lora(load_classifier(folders["bert"], 2, seed=0), 2, 4)
    arrays = {name: array + 1 for name, array in trainable_arrays(model).items()}
    set_trainable_arrays(model, arrays)
    assert all((trainable_arrays(model)[name] == arrays[name]).all() for name in arrays)
    name, first = next(iter(arrays.items()))
    with pytest.raises(ValueError, match="the first that differs"):
        set_trainable_arrays(model, {name: first})
    with pytest.raises(ValueError, match="found shape"):
        set_trainable_arrays(model, arrays | {name: first[:1]})


def test_loading_is_silent(folders, capfd):
    forget()
    load_tokenizer(folders["bert"])
    load_classifier(folders["bert"], 2, seed=0)
    attach_lora(load_causal_lm(folders["gpt2"]), 2, 4)
    assert capfd.readouterr() == ("", "")


def test_fit_embeddings_leaves_a_fitting_model_alone(folders, tokenizer):
    model = load_causal_lm(folders["gpt2"])
    before = model.get_input_embeddings().weight
    fit_embeddings(model, tokenizer)
    assert model.get_input_embeddings().weight is before
