"""The task section: every YAML of conf/task, overrides alone, and the sentences for what cannot
work."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedduet.conf.check import ConfigError, check
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import build_task, check_data, client_names
from fedduet.tasks.data.questions import check_task
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"
DATA = CONF.parents[1] / "shared" / "data"
NEEDED = {
    "questions": ["task.path={a: x}"],
    "files": ["task.path=F", "task.labels={0: no, 1: yes}"],
    "hub": ["task.dataset=D", "task.labels={0: no, 1: yes}"],
}


def composed(name: str, *overrides: str) -> TaskConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        found = compose(f"task/{name}", overrides=list(overrides))
    return check_task(OmegaConf.to_container(found.task, resolve=True))


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "task").glob("*.yaml")))
def test_every_yaml_is_a_task(name):
    assert composed(name, *NEEDED.get(name, [])).name == name


def test_the_listing_of_keys_is_whole_and_its_values_are_the_defaults():
    listed = OmegaConf.to_container(OmegaConf.load(CONF / "task" / "files.yaml"))
    assert set(listed) == set(TaskConfig.model_fields)
    shown = check(TaskConfig, {**listed, "path": "F", "labels": {0: "a", 1: "b"}}, "task")
    assert shown == check(
        TaskConfig, {"name": "files", "path": "F", "labels": {0: "a", 1: "b"}}, "task"
    )


def test_everything_by_override_alone():
    made = composed(
        "files", "task.path=F", "task.test_path=G", "task.text_column=words", "task.label_column=stars", "task.client_column=shop",
        "task.clients=[a_b,7]", "task.labels={0: negative, 1: positive}", "task.rows_per_client=50",
        "task.control_code='Shop: {domain}\\nMood: {label}\\nText:'",
    )  # fmt: skip
    assert (made.clients, made.labels, made.rows_per_client) == (
        ("a_b", "7"),
        {"0": "negative", "1": "positive"},
        50,
    )
    task = build_task(made)
    assert task.domains == {"a_b": "a b", "7": "7"}
    assert task.labels == ("negative", "positive")
    assert composed("files", "task.path={a: A, b: B}", "task.labels=[no, yes]").path == {
        "a": "A",
        "b": "B",
    }
    assert composed(
        "fdu_mtl", "task.clients=[books]", "task.root=/x", "task.rows_per_client=null"
    ).clients == ("books",)


def test_the_control_code_of_fdu_mtl_is_the_layout_of_pre_training():
    task = build_task(composed("fdu_mtl"))
    expected = "Product: camera_photo\nRating: positive\nReview: "
    assert task.control(task.domains["camera_photo"], 1) == expected
    assert task.prompts.completion_document == "Product: {domain}\nRating: {label}\nReview: {text}"


def test_the_world_needs_nothing():
    made = composed("world")
    summary = check_data(made, 0, logical_batch=40)
    assert list(summary) == ["coffee", "laptops", "headphones", "tents"] == list(client_names(made))
    assert sum(summary["tents"].train.values()) == 40
    assert sum(summary["tents"].validation.values()) == 10
    assert sum(summary["tents"].test.values()) == 400


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")
@pytest.mark.parametrize(("name", "rows"), [("fdu_mtl", 50), ("ag_news", None)])
def test_the_real_data_sets_load(name, rows):
    root = DATA / name
    summary = check_data(composed(name, f"task.root={root}"), 0, logical_batch=rows)
    if name == "fdu_mtl":
        assert [sum(one.train.values()) for one in summary.values()] == [50] * 4
        assert [sum(one.test.values()) for one in summary.values()] == [397, 399, 383, 398]
        assert [one.available for one in summary.values()] == [1562, 1459, 1359, 1516]
    else:
        assert len(summary) == 5
        assert all(
            one.test == dict.fromkeys(["World", "Sports", "Business", "Sci/Tech"], 1900)
            for one in summary.values()
        )
        assert sum(one.available for one in summary.values()) == 4998 - sum(
            one.in_test for one in summary.values()
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": None}, "task: path: missing with source=files"),
        ({"labels": {}}, r"task: labels: found \{\}; needed: at least two"),
        ({"labels": {0: "same", 1: "Same"}}, "task.labels: found same, Same; wordings must differ"),
        (
            {"labels": {1: "one", "1.0": "two"}},
            "task.labels: found '1' twice, worded 'one' and 'two'",
        ),
        ({"labels": 3}, "task.labels: found 3; allowed: a mapping"),
        ({"clients": []}, r"task.clients: found \[\]; allowed: a list of names"),
        ({"clients": ["a", "a"]}, "a name stands there twice"),
        (
            {"clients": 4, "partition": "column", "client_column": "c"},
            "clients: found the number 4 with partition=column",
        ),
        ({"partition": "iid"}, "clients: missing with partition=iid"),
        ({"partition": "column"}, "client_column: missing with partition=column"),
        (
            {"path": {"a": "A"}, "partition": "iid", "clients": 2},
            "path: found one file per client with partition=iid",
        ),
        ({"rows_per_client": 1}, "rows_per_client: found 1; allowed: at least one a label, 2"),
        ({"source": "hub"}, "dataset: missing with source=hub"),
        ({"source": "web"}, "task.source: found 'web'"),
        ({"control_code": "Rating:"}, r"task.control_code: found 'Rating:'; it needs \{label\}"),
        (
            {"control_code": "{label} {product}"},
            r"found the placeholder \{product\}; allowed: \{domain\}, \{label\}",
        ),
        ({"control_code": "{label} {"}, "a brace other than"),
        ({"text_colum": "x"}, "task.text_colum: unknown key; did you mean text_column"),
        (
            {"prompts": {"chat_augment": "Write {n} of {label}"}},
            r"prompts.chat_augment: found .* it needs \{examples\}",
        ),
        (
            {"prompts": {"chat_judge": "Judge!"}},
            r"prompts.chat_judge: found 'Judge!'; it needs \{members\}",
        ),
        ({"prompts": {"completion_document": "{label}: {text}."}}, r"it must end in \{text\}"),
    ],
)
def test_a_section_that_cannot_work_says_so(values, message):
    with pytest.raises(ConfigError, match=message):
        check(
            TaskConfig, {"name": "t", "path": "F", "labels": {0: "no", 1: "yes"}, **values}, "task"
        )


def test_a_world_client_must_be_a_private_domain():
    with pytest.raises(
        ConfigError,
        match=r"task.clients: found 'books'; allowed: coffee, headphones, laptops, tents",
    ):
        client_names(composed("world", "task.clients=[books]"))
    assert client_names(composed("world", "task.clients=6"))[-2:] == ("coffee_2", "laptops_2")


def test_rows_that_no_key_assigns_to_clients(tmp_path):
    (tmp_path / "f.csv").write_text("text,label\nx,0\n")
    made = check(
        TaskConfig,
        {"name": "t", "path": str(tmp_path / "f.csv"), "labels": {0: "no", 1: "yes"}},
        "task",
    )
    with pytest.raises(ConfigError, match=r"task\.partition: cannot tell who holds which rows"):
        build_task(made)
