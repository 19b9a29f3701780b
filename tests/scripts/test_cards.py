"""Saved models: plain folders with a card that says what a reader must know, and holds no private
text."""

import re

import pytest
import yaml
from fedduet.lm.models.card import Card, add_metric, guarantee, write_card
from fedduet.scripts.launching.launch import launch
from fedduet.scripts.look import model_folder, predict
from fedduet.tasks.builtin.world import world_records
from huggingface_hub import ModelCard

from fedduet import conf

OFF = (
    "strategy.baselines={local: true, dp_only: false, zero_shot: false, fedavg: true, pooled: true}"
)


def code(card):
    """The lines that a card tells to run."""
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


def front(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_models_of_a_run_are_what_their_cards_say_and_load_by_the_cards_lines(
    overrides, tmp_path, capsys, monkeypatch, tiny_model
):
    summary = launch(conf.compose([*overrides, OFF]))
    folder = model_folder(tmp_path / "run", "coffee", "fdkt")
    cards = sorted((tmp_path / "run").rglob("README.md"))
    names = {file.parent.name for file in cards}
    assert names == {"fdkt", "local", "fedavg", "pooled", "generator-0"} and len(cards) == 9
    private = [
        record.text
        for domain in ("coffee", "tents")
        for seed, n in ((1, 60), (2, 30))
        for record in world_records(domain, n, seed)
    ]
    for file in cards:
        text = file.read_text()
        assert not [one for one in private if one in text], file
        # a folder of this machine is named in words; of the hub's models alone in front
        assert front(text)["license"] == "unknown" and "base_model" not in front(text)
        assert f"Base model: `{tiny_model}`." in text

    card = (folder / "README.md").read_text()
    assert (
        "32 private texts of the site coffee" in card
        and "generated labelled texts" in card
        and "no epsilon covers it" in card
    )
    assert (
        f"- test accuracy: {summary['accuracy_per_client']['coffee']['fdkt']:.4f} (30 rows)" in card
        and "Not measured" not in card
    )
    averaged = (folder.parent / "fedavg" / "README.md").read_text()
    assert (
        "average of models" in averaged
        and "no epsilon covers it" in averaged
        and "without a formal guarantee" in averaged
    )
    pooled = next(file for file in cards if file.parent.name == "pooled").read_text()
    assert "all sites together, an upper bound" in pooled

    capsys.readouterr()
    assert predict([str(tmp_path / "run"), "--client", "coffee", "a text"]) == 0
    label, probability, _ = capsys.readouterr().out.strip().split("\t")
    monkeypatch.chdir(folder)
    exec(code(card), {})
    printed = yaml.safe_load(capsys.readouterr().out)[0]
    assert printed["score"] == pytest.approx(float(probability), abs=2e-3)
    assert printed["label"] == label and re.search(rf"^- [01]: {label}$", card, re.MULTILINE)
    shown = ModelCard.load(folder / "README.md").data  # as Hugging Face reads it
    assert shown.pipeline_tag == "text-classification"
    (result,) = shown.eval_results
    accuracy = summary["accuracy_per_client"]["coffee"]["fdkt"]
    assert result.metric_type == "accuracy" and result.metric_value == round(accuracy, 4)

    generator = (folder.parent / "generator-0" / "README.md").read_text()
    spent = summary["receipts"]["coffee"]
    assert (
        guarantee(
            spent.epsilon if hasattr(spent, "epsilon") else spent["epsilon"],
            summary["delta"]["coffee"],
        )
        in generator
    )
    monkeypatch.chdir(folder.parent / "generator-0")
    found = {}
    exec(code(generator), found)
    weights = {name: value for name, value in found["model"].named_parameters() if "lora_B" in name}
    # trained: B starts at zero
    assert weights and all(float(value.abs().sum()) > 0 for value in weights.values())


def test_a_metric_measured_again_replaces_the_older_one(tmp_path):
    write_card(
        tmp_path,
        Card(
            "a",
            "text-classification",
            "base",
            "data",
            ["private"],
            labels=["x", "y"],
            notes=["a stand-in"],
        ),
    )
    assert "Not measured." in (tmp_path / "README.md").read_text()
    add_metric(tmp_path, "test accuracy", 0.5, 10)
    add_metric(tmp_path, "other", 0.25, 4)
    add_metric(tmp_path, "test accuracy", 0.75, 20)
    text = (tmp_path / "README.md").read_text()
    assert (
        text.count("test accuracy") == 1
        and "- test accuracy: 0.7500 (20 rows)" in text
        and "- other: 0.2500 (4 rows)" in text
    )
    assert "Not measured" not in text and "## Labels" in text and "> a stand-in" in text
    add_metric(tmp_path / "none", "test accuracy", 0.5, 10)  # no card: nothing to do
    assert not (tmp_path / "none").exists()


def test_a_guarantee_that_is_none_says_so():
    assert "no formal privacy guarantee" in guarantee(float("inf"), 1e-5)
    assert guarantee(7.99951, 1e-5).startswith("(8, 1e-05)-differentially private")


def test_cards_of_llm_adapters_say_what_went_in(tmp_path, tiny_model):
    from fedduet.server.cards import write_adapter_cards

    for name in ("tune-generator-1", "tune-task-1", "tune-task-pooled", "tune-task-unfiltered"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
    summary = {
        "llm": {"path": "builtin:llm", "description": "built-in world, stand-in LLM, 1.0 M parameters"},
        "task": "world", "clients": 2, "strategy": "crosslm", "seed": 0, "rounds": 2, "feedback": "votes",
        "epsilon": {"coffee": 3.0}, "delta": {"coffee": 1e-5},
        "llm_accuracy": {"before": 0.5, "after": 0.875, "pooled": 0.9}, "llm_general": {"generator": {"perplexity": 2.5}},
    }  # fmt: skip
    write_adapter_cards(tmp_path, summary)
    texts = {file.parent.name: file.read_text() for file in tmp_path.rglob("README.md")}
    assert (
        "0.8750" in texts["tune-task-1"]
        and "2.5000" in texts["tune-generator-1"]
        and "0.9000" in texts["tune-task-pooled"]
    )
    assert (
        "protected by: votes" in texts["tune-task-1"]
        and "(3, 1e-05)-differentially private" in texts["tune-task-1"]
    )
    assert (
        "PRIVATE TEXTS" in texts["tune-task-pooled"]
        and "must not be given away" in texts["tune-task-pooled"]
    )
    assert all(
        "stand-in" in text and front(text)["library_name"] == "peft" for text in texts.values()
    )
