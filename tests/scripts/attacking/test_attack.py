"""`fedduet attack` on tiny settings: it sees a generator without noise that learned by heart, and
nothing through DP."""

import json
import math

import pytest
from fedduet.conf.check import ConfigError
from fedduet.lm.decoding.sample import sample_texts
from fedduet.lm.models.load import load_causal_lm, load_tokenizer
from fedduet.lm.training.causal import train_causal
from fedduet.lm.training.config import SLMConfig
from fedduet.scripts.attacking.attack import Site, attack_members, attack_secrets, main, open_site
from fedduet.wire.messages import LabelledTexts


@pytest.fixture
def small(overrides):
    kept = [
        entry
        for entry in overrides
        if entry.split("=")[0].split(".")[0] in ("task", "slm", "generator", "llm")
    ]
    return [
        *kept,
        "task.rows_per_client=32",
        "generator.logical_batch=16",
        "generator.precision=fp32",
        "slm.precision=fp32",
    ]


@pytest.fixture
def by_heart(monkeypatch):
    """Releases of a generator that trained on the records without DP until it knew them, in place
    of the site's."""

    def release(site, records, epsilon):
        tokenizer = load_tokenizer(site.generator.path, generates=True)
        model = load_causal_lm(site.generator.path, tokenizer=tokenizer)
        setting = SLMConfig(
            path=site.generator.path,
            learning_rate=1e-2,
            epochs=60,
            min_steps=0,
            max_steps=120,
            batch_size=16,
            max_tokens=64,
        )
        pairs = [(site.control(record.label), record.text) for record in records]
        model, _ = train_causal(model, tokenizer, pairs, setting)
        labels = [number % 2 for number in range(2 * site.per_label)]
        given = {"max_new_tokens": 48, "temperature": 0.7, "seed": site.seed}
        texts = [
            sample.text
            for sample in sample_texts(
                model, tokenizer, [site.control(label) for label in labels], **given
            )
        ]
        return LabelledTexts(texts, labels)

    monkeypatch.setattr(Site, "release", release)


def test_texts_of_a_generator_that_learned_by_heart_give_members_away(small, by_heart):
    rows = {
        row["attack"]: row
        for row in attack_members([open_site(small, "coffee", 0, 40)], [math.inf], ["texts"])
    }
    assert rows["nearest released text"]["auc"] > 0.7 and rows["nearest released text"]["low"] > 0.5
    assert rows["loss against the public start"]["auc"] > 0.7


def test_a_secret_in_many_records_comes_out_and_is_found(small, by_heart):
    (row,) = attack_secrets([open_site(small, None, 0, 40)], [math.inf], [20])
    assert row["secrets"]["20"] == {"planted": 1, "names": 1, "numbers": 1}
    assert row["runs"]["private"]["longest"] > row["runs"]["unseen"]["longest"]


def test_the_command_prints_a_table_and_writes_json(small, tmp_path, capsys):
    out = tmp_path / "members.json"
    assert (
        main(
            [
                "members",
                *small,
                "--seeds",
                "1",
                "--epsilons",
                "8",
                "--per-label",
                "24",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    written = json.loads(out.read_text())
    assert [row["release"] for row in written["rows"]] == [
        "texts",
        "texts",
        "votes",
        "gaussian",
        "none",
    ]
    assert all(
        0 <= row["low"] <= row["auc"] <= row["high"] <= 1 and row["members"] == 32
        for row in written["rows"]
    )
    assert (
        main(
            [
                "secrets",
                *small,
                "--seeds",
                "1",
                "--epsilons",
                "1",
                "--repeats",
                "1,10",
                "--per-label",
                "24",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert json.loads(out.read_text())["rows"][0]["secrets"]["1"] == {
        "planted": 10,
        "names": 0,
        "numbers": 0,
    }
    assert "attack on members of coffee" in capsys.readouterr().out


def test_bad_arguments_are_named(small):
    with pytest.raises(ConfigError, match="--epsilons: found '0'; allowed: numbers above 0"):
        main(["members", "--epsilons", "0", *small])
    with pytest.raises(ConfigError, match="--releases: found weights; allowed: texts, votes"):
        main(["members", "--releases", "weights", *small])
    with pytest.raises(ConfigError, match="--repeats: found 32 records for 100 planted ones"):
        main(["secrets", "--repeats", "100", "--seeds", "1", *small])
    with pytest.raises(ConfigError, match="--client: found 'tea'; allowed: coffee, tents"):
        main(["members", "--client", "tea", *small])
