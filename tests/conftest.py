"""Tiny real models and a private CSV that several test folders use."""

import csv

import pytest
import yaml


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A plain folder with a random Llama of two layers and a byte-level tokenizer trained on the
    built-in world."""
    import torch
    from fedduet.lm.pretraining.start import train_tokenizer
    from fedduet.tasks.builtin.world import public_documents
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer(public_documents(0, 200), 512, 256)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def private_csv(tmp_path_factory):
    """train.csv and test.csv with the columns text, label (0/1) and domain for the clients coffee
    and tents."""
    from fedduet.tasks.builtin.world import world_records

    folder = tmp_path_factory.mktemp("data")
    for name, seed, rows in (("train", 1, 60), ("test", 2, 30)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label", "domain"])
            for domain in ("coffee", "tents"):
                writer.writerows(
                    [record.text, record.label, domain]
                    for record in world_records(domain, rows, seed)
                )
    return folder


@pytest.fixture
def overrides(tiny_model, private_csv, tmp_path):
    """A whole FDKT run in process on the private CSV with tiny models, in a second or two, as a
    list of Hydra overrides."""
    from fedduet.tasks.builtin.world import world_records

    answers = {
        f"Label: {label}\nText:$": [
            record.text for record in world_records("lamps", 80, 3) if record.label == index
        ]
        for index, label in enumerate(("negative", "positive"))
    }
    script = tmp_path / "script.yaml"
    script.write_text(yaml.safe_dump({"answers": answers}))
    return [
        "federation=inprocess",
        "task=files",
        f"task.path={private_csv}/train.csv",
        f"task.test_path={private_csv}/test.csv",
        "task.client_column=domain",
        "task.clients=[coffee,tents]",
        "task.labels={0: negative, 1: positive}",
        "task.rows_per_client=32",
        "llm=scripted",
        f"llm.script={script}",
        f"slm.path={tiny_model}",
        "slm.max_steps=6",
        f"generator.path={tiny_model}",
        "generator.epochs=2",
        "generator.steps=null",
        "slm.min_steps=0",
        "generator.max_new_tokens=16",
        "generator.attempts=2",
        "strategy.demonstrations_per_label=6",
        "strategy.augment.per_label=8",
        "strategy.fedavg_rounds=1",
        f"run.folder={tmp_path}/run",
    ]
