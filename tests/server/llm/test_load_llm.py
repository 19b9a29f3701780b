"""Loading engines from the configuration, and the sentences for what cannot work."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fedduet.conf.check import ConfigError, check
from fedduet.server.llm.base import Request
from fedduet.server.llm.config import LLMConfig
from fedduet.server.llm.load import _dtype, check_llm, load_llm
from transformers import BertConfig, BertModel

from fedduet import conf


def refusal(**values):
    with pytest.raises(ConfigError) as failure:
        check_llm(check(LLMConfig, values, where="llm"))
    return str(failure.value)


def test_a_folder_becomes_an_engine(model_folder, llama):
    llm = load_llm(LLMConfig(path=str(model_folder), precision="fp32", device="cpu"))
    assert (llm.name, llm.form, llm.context) == ("transformers:tiny", "chat", 128)
    assert (
        llm.parameters == sum(weight.numel() for weight in llama.parameters())
        and llm.model.dtype == torch.float32
    )
    low = load_llm(
        LLMConfig(
            path=str(model_folder),
            precision="bf16",
            device="cpu",
            form="completion",
            context=64,
            name="mine",
        )
    )
    assert (low.name, low.form, low.context, low.model.dtype) == (
        "mine",
        "completion",
        64,
        torch.bfloat16,
    )
    answer = low.generate([Request("the camera", max_new_tokens=10)])[0]
    assert answer.finish in ("stop", "length") and answer.new_tokens > 0


def test_automatic_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for there, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        assert _dtype("auto", cpu) == expected
    assert _dtype("fp32", cpu) == torch.float32


def test_int8_is_of_generation_and_for_processors_that_have_it(model_folder, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ConfigError, match=r"llm\.precision: found int8, allowed: auto, fp32, bf16"):
        load_llm(LLMConfig(path=str(model_folder), precision="int8", device="cpu"))
    assert _dtype("int8", torch.device("cpu")) == _dtype("auto", torch.device("cpu"))


def test_nothing_given_or_unknown():
    assert refusal() == "llm: engine transformers needs path; found null"
    assert refusal(engine="openai") == "llm: engine openai needs model and base_url; found null"
    assert "base_url: found 'localhost:8000'" in refusal(
        engine="openai", model="m", base_url="localhost:8000"
    )
    assert refusal(path="x", tempreature=1).startswith(
        "llm.tempreature: unknown key; did you mean temperature"
    )
    assert refusal(path="x", top_p=0).startswith("llm.top_p: found 0;")


def test_folders_that_cannot_work(model_folder, tmp_path):
    assert "not a folder" in refusal(path=str(tmp_path / "nowhere"))
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        folder = tmp_path / name
        shutil.copytree(model_folder, folder)
        (folder / name).unlink()
        text = refusal(path=str(folder))
        assert text.startswith("llm.path: ") and str(folder) in text and name.split(".")[0] in text
    encoder = tmp_path / "encoder"
    shutil.copytree(model_folder, encoder)
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(encoder)
    assert "cannot generate text" in refusal(path=str(encoder))


def test_devices_that_are_not_there(model_folder):
    assert "llm.device: found 'gpu', allowed: auto, cpu" in refusal(
        path=str(model_folder), device="gpu"
    )
    assert "this machine has" in refusal(
        path=str(model_folder), device=f"cuda:{torch.cuda.device_count()}"
    )


def test_what_only_loading_shows(model_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"llm\.context: found 999, allowed: at most 128"):
        load_llm(LLMConfig(path=str(model_folder), context=999, device="cpu"))
    small = tmp_path / "small"
    shutil.copytree(model_folder, small)
    tokenizer = json.loads((small / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = 301
    (small / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="has token id 301, but the model has 300 embedding rows"):
        load_llm(LLMConfig(path=str(small), device="cpu"))
    deep = tmp_path / "deep"
    shutil.copytree(model_folder, deep)
    values = json.loads((deep / "config.json").read_text())
    (deep / "config.json").write_text(
        json.dumps(values | {"num_hidden_layers": 3, "layer_types": None})
    )
    with pytest.raises(ConfigError, match=r"lacks 9 of the model's weights \(model\.layers\.2"):
        load_llm(LLMConfig(path=str(deep), device="cpu"))
    plain = tmp_path / "plain"
    shutil.copytree(model_folder, plain)
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"llm\.form: found chat, but the tokenizer"):
        load_llm(LLMConfig(path=str(plain), form="chat", device="cpu"))
    assert load_llm(LLMConfig(path=str(plain), device="cpu")).form == "completion"


def test_endpoint_and_script_mistakes(tmp_path):
    endpoint = {"engine": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1"}
    assert "NO_SUCH_KEY_VARIABLE is not set" in refusal(
        **endpoint, api_key_env="NO_SUCH_KEY_VARIABLE"
    )
    assert "has no tokenizer" in refusal(**endpoint, tokenizer=str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"llm\.cache_dir: .* cannot be used"):
        load_llm(LLMConfig(**endpoint, cache_dir=str(tmp_path / "file" / "cache")))
    assert "is not a file" in refusal(engine="scripted", script=str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("name", ["transformers", "openai", "scripted"])
def test_configuration_files_are_valid_and_agree_with_the_defaults(name):
    values = yaml.safe_load((Path(conf.__file__).parent / "llm" / f"{name}.yaml").read_text())
    given = {key: "given" if value == "???" else value for key, value in values.items()}
    config = check(LLMConfig, given, where="llm")
    assert config.engine == name and "given" in given.values()
    default = LLMConfig(engine="scripted", script="x")
    assert [
        getattr(config, key) for key in ("temperature", "top_p", "top_k", "max_new_tokens")
    ] == [1.0, 0.9, 50, 96]
    same = (
        set(values)
        - {"engine", "script", "form", "context", "base_url"}
        - {key for key in values if values[key] == "???"}
    )
    assert {key: getattr(config, key) for key in same} == {
        key: getattr(default, key) for key in same
    }


def test_the_interface_and_the_endpoint_engine_import_no_torch():
    program = (
        "import sys, fedduet.server.llm.load, fedduet.server.llm.openai_engine,"
        " fedduet.server.llm.scripted; sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], cwd=Path(conf.__file__).parent.parent, check=False
        ).returncode
        == 0
    )
