"""Reading, checking, partitioning and splitting the rows of a task."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import pytest
from fedduet.conf.check import ConfigError, check
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data import partition as part
from fedduet.tasks.data.load import (
    build_task,
    check_data,
    client_names,
    load_client,
    load_clients,
    load_pooled,
)
from fedduet.tasks.data.read import Columns
from hypothesis import given, settings
from hypothesis import strategies as st

LABELS = {0: "negative", 1: "positive"}


def rows(n: int, clients: tuple[str, ...] = ("a", "b"), word: str = "text") -> list[dict[str, str]]:
    """`n` rows a client, labels 0 and 1 in turn, all texts different."""
    return [
        {"text": f"{word} {client} number {i}", "label": str(i % 2), "domain": client}
        for client in clients
        for i in range(n)
    ]


def write_csv(path: Path, data: list[dict[str, str]]) -> Path:
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, list(data[0]))
    writer.writeheader()
    writer.writerows(data)
    path.write_bytes(content.getvalue().encode())
    return path


def config(path: object, **values: object) -> TaskConfig:
    given_path = (
        {key: str(file) for key, file in path.items()} if isinstance(path, dict) else str(path)
    )
    return check(
        TaskConfig,
        {"name": "t", "path": given_path, "client_column": "domain", "labels": LABELS, **values},
        "task",
    )


def texts(records) -> set[str]:
    return {record.text for record in records}


# --- labels ---------------------------------------------------------------------------------------


def test_float_labels_are_not_read_by_their_first_character(tmp_path):
    data = [{"text": f"t{i}", "label": f"{label}.0"} for i, label in enumerate([1, 10, 2] * 6)]
    made = config(
        write_csv(tmp_path / "f.csv", data),
        client_column=None,
        clients=["a"],
        labels={1: "one", 2: "two", 10: "ten"},
    )
    split = load_client(made, "a", 0)
    labels = {record.text: record.label for record in split.train + split.validation + split.test}
    assert labels == {f"t{i}": {1: 0, 10: 2, 2: 1}[label] for i, label in enumerate([1, 10, 2] * 6)}
    with pytest.raises(
        ConfigError, match=r"row 2 \(line 3\): column 'label' holds '10'.*allowed: '1', '2'"
    ):
        load_client(
            config(
                tmp_path / "f.csv", client_column=None, clients=["a"], labels={1: "one", 2: "two"}
            ),
            "a",
            0,
        )


def test_several_raw_values_may_share_a_wording(tmp_path):
    data = [{"text": f"t{i}", "label": str(i % 4 + 1), "domain": "a"} for i in range(40)]
    stars = {1: "bad", 2: "bad", 3: "good", 4: "good"}
    split = load_client(config(write_csv(tmp_path / "f.csv", data), labels=stars), "a", 0)
    assert build_task(config(tmp_path / "f.csv", labels=stars)).labels == ("bad", "good")
    assert all(record.label == int(int(record.text[1:]) % 4 >= 2) for record in split.train)


# --- rows -----------------------------------------------------------------------------------------


def test_an_unknown_label_and_an_empty_text_name_their_row(tmp_path):
    data = rows(20)
    data[7]["label"] = "2"
    with pytest.raises(
        ConfigError,
        match=(
            r"row 8 \(line 9\): column 'label' holds '2', which task.labels does not list; allowed: '0', '1'"
        ),
    ):
        check_data(config(write_csv(tmp_path / "f.csv", data)), 0)
    # row 8 is not b's
    assert set(check_data(config(tmp_path / "f.csv"), 0, clients=["b"])) == {"b"}
    data[7]["label"], data[30]["text"] = "1", " \t"
    with pytest.raises(ConfigError, match=r"row 31 \(line 32\): column 'text' is empty"):
        check_data(config(write_csv(tmp_path / "f.csv", data)), 0)


def test_a_client_without_rows_names_the_nearest(tmp_path):
    path = write_csv(tmp_path / "f.csv", rows(20, ("kitchen", "books")))
    with pytest.raises(
        ConfigError,
        match=r"no training rows whose column 'domain' is 'kitchn'; did you mean kitchen\?",
    ):
        check_data(config(path, clients=["kitchn"]), 0)
    with pytest.raises(ConfigError, match=r"no client 'book'; did you mean books\?"):
        load_client(config(path), "book", 0)


def test_a_label_with_one_row_names_client_and_label(tmp_path):
    data = [
        row
        for row in rows(20)
        if row["domain"] == "a" or row["label"] == "1" or row["text"].endswith(" 4")
    ]
    with pytest.raises(ConfigError, match=r"client b: one row is labelled 'negative'"):
        check_data(config(write_csv(tmp_path / "f.csv", data)), 0)


def test_fewer_rows_than_the_logical_batch(tmp_path):
    path = write_csv(tmp_path / "f.csv", rows(100))
    assert check_data(config(path, rows_per_client=32), 0, logical_batch=32)["a"].train == {
        "negative": 16,
        "positive": 16,
    }
    with pytest.raises(
        ConfigError, match=r"client a: 32 training rows, fewer than the logical batch of 33"
    ):
        check_data(config(path, rows_per_client=32), 0, logical_batch=33)


def test_a_very_long_text_is_cut_at_a_word_and_counted(tmp_path):
    data = rows(20)
    data[0]["text"] = "word " * 40_000
    data[1]["text"] = "x" * 200_000
    made = config(write_csv(tmp_path / "f.csv", data), max_chars=1_002)
    summary = check_data(made, 0)
    assert (summary["a"].cut, summary["b"].cut) == (2, 0)
    split = load_client(made, "a", 0)
    long = sorted((r.text for r in split.train + split.validation + split.test), key=len)[-2:]
    assert long == [("word " * 200).strip(), "x" * 1_002]


def test_a_missing_file_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/data/none.csv: no such file"):
        load_client(config("none.csv", root="data", clients=["a"]), "a", 0)


# --- splits ---------------------------------------------------------------------------------------


def test_sizes_of_a_client(tmp_path):
    path = write_csv(tmp_path / "f.csv", rows(200))
    split = load_client(config(path, rows_per_client=50), "a", 0)
    assert Counter(r.label for r in split.train) == {0: 25, 1: 25}
    assert (len(split.validation), len(split.test)) == (13, 40)
    assert abs(sum(r.label for r in split.validation) - 6.5) == 0.5
    assert {r.domain for r in split.train} == {"a"}
    few = load_client(config(path, rows_per_client=50, test_rows=10, validation_rows=3), "a", 0)
    assert (len(few.train), len(few.validation), len(few.test)) == (50, 3, 10)
    assert texts(few.test) < texts(split.test)
    every = load_client(config(path), "a", 0)
    assert (len(every.train), len(every.validation), len(every.test)) == (128, 32, 40)


@pytest.mark.parametrize(
    ("available", "asked", "validation", "expected"),
    [(160, 50, None, (50, 13)), (63, 50, None, (50, 13)), (60, 50, None, (48, 12)), (50, 50, None, (40, 10)), (8, 50, None, (6, 2)),
     (100, None, None, (80, 20)), (11, None, None, (8, 3)), (100, 40, 0, (40, 0)), (100, 90, 30, (80, 20)), (100, 60, 30, (60, 30)),
     (10, None, 9, (5, 5))],
)  # fmt: skip
def test_validation_is_carved_from_training_only_where_rows_are_few(
    available, asked, validation, expected
):
    assert part.sizes(available, asked, validation) == expected


def test_the_seed_decides_and_nothing_else(tmp_path):
    path = write_csv(tmp_path / "f.csv", rows(100))
    first = load_client(config(path, rows_per_client=20), "a", 3)
    assert (
        load_client(config(path, rows_per_client=20), "a", 3)
        == first
        == load_clients(config(path, rows_per_client=20), 3)["a"].split
    )
    assert texts(load_client(config(path, rows_per_client=20), "a", 4).train) != texts(first.train)
    # a golden value: the same on every machine and in every process
    assert sorted(int(r.text.split()[-1]) for r in first.train)[:5] == [3, 9, 11, 14, 19]


def test_more_training_rows_contain_the_fewer(tmp_path):
    path = write_csv(tmp_path / "f.csv", rows(200))
    few, many = (
        texts(load_client(config(path, rows_per_client=n), "a", 0).train) for n in (20, 60)
    )
    assert few < many
    assert (
        texts(load_client(config(path, rows_per_client=20, validation_rows=40), "a", 0).train)
        == few
    )


def test_repeats_and_rows_of_the_test_split_are_dropped_from_train(tmp_path):
    train, test = rows(40, ("a",)), rows(10, ("a",), word="test")
    train += [dict(train[0]), dict(train[3]), dict(test[2])]
    made = config(
        write_csv(tmp_path / "f.csv", train), test_path=str(write_csv(tmp_path / "t.csv", test))
    )
    summary = check_data(made, 0)["a"]
    assert (summary.repeated, summary.in_test, summary.available, sum(summary.test.values())) == (
        2,
        1,
        40,
        10,
    )
    split = load_client(made, "a", 0)
    assert not texts(split.train + split.validation) & texts(split.test)


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 2), min_size=12, max_size=120),
    asked=st.one_of(st.none(), st.integers(3, 150)),
    validation=st.one_of(st.none(), st.integers(0, 40)),
    seed=st.integers(0, 9),
)
def test_train_and_validation_are_disjoint_and_stratified(labels, asked, validation, seed):
    train, held = part.train_and_validation(
        labels, 3, asked, validation, part.named_random(seed, "x")
    )
    assert not set(train) & set(held)
    wanted_train, wanted_held = part.sizes(len(labels), asked, validation)
    counts, of_train, of_held = (
        Counter(labels[row] for row in picked) for picked in (range(len(labels)), train, held)
    )
    assert len(held) <= wanted_held
    assert len(train) <= wanted_train
    # at most one row a label stays behind for validation
    assert len(train) >= min(wanted_train, len(labels) - 3)
    for label, count in counts.items():
        if wanted_held and count >= 2 and wanted_train >= 3 and wanted_held >= 3:
            assert of_train[label] >= 1
            assert of_held[label] >= 1
    if wanted_held == 0 and asked is not None and asked <= len(labels):
        assert len(train) == asked


@settings(max_examples=15, deadline=None)
@given(
    data=st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 1), st.sampled_from("ab")),
        min_size=40,
        max_size=150,
    ),
    seed=st.integers(0, 3),
    asked=st.sampled_from([None, 4, 20]),
    how=st.sampled_from(["column", "iid"]),
)
def test_splits_are_disjoint_by_content(tmp_path_factory, data, seed, asked, how):
    path = tmp_path_factory.mktemp("d") / "f.csv"
    data = [*data, *((100 + i, i % 2, "ab"[i % 3 % 2]) for i in range(24))]
    write_csv(
        path,
        [
            {"text": f"t{text}", "label": str(label), "domain": client}
            for text, label, client in data
        ],
    )
    more = {"partition": "iid", "clients": 2, "client_column": None} if how == "iid" else {}
    made = config(path, rows_per_client=asked, **more)
    splits = [load_client(made, client, seed) for client in client_names(made)] + [
        load_pooled(made, seed)
    ]
    for split in splits:
        train, validation, test = texts(split.train), texts(split.validation), texts(split.test)
        assert not train & test and not validation & test and not train & validation
        assert len(train) == len(split.train)
        assert train and test
    if how == "iid":
        everything = [texts(split.train + split.validation + split.test) for split in splits[:2]]
        assert not everything[0] & everything[1]
    assert texts(splits[2].test) == texts(splits[0].test) | texts(splits[1].test)


def test_pooled_is_the_union_with_domains(tmp_path):
    path = write_csv(tmp_path / "f.csv", rows(100))
    made = config(path, rows_per_client=20, clients={"a": "the a", "b": "the b"})
    pooled, a, b = load_pooled(made, 0), load_client(made, "a", 0), load_client(made, "b", 0)
    assert set(pooled.train) == set(a.train) | set(b.train)
    assert len(pooled.train) == 40 and len(pooled.validation) == 10 and len(pooled.test) == 40
    assert Counter(r.domain for r in pooled.train) == {"the a": 20, "the b": 20}


# --- who holds what -------------------------------------------------------------------------------


def test_one_file_per_client_as_mapping_and_as_folder(tmp_path):
    for client in "ab":
        write_csv(tmp_path / f"shop_{client}.csv", rows(30, (client,)))
    folder = config(tmp_path, client_column=None)
    mapping = config(
        {f"shop_{client}": tmp_path / f"shop_{client}.csv" for client in "ab"}, client_column=None
    )
    assert client_names(folder) == client_names(mapping) == ("shop_a", "shop_b")
    assert build_task(folder).domains == {"shop_a": "shop a", "shop_b": "shop b"}
    assert load_client(folder, "shop_b", 0) == load_client(mapping, "shop_b", 0)
    assert all(" b number" in r.text for r in load_client(folder, "shop_b", 0).train)
    (tmp_path / "shop_a.csv").unlink()  # a site reads its own file only
    assert len(load_client(mapping, "shop_b", 0).test) == 6
    with pytest.raises(ConfigError, match="no file for client 'shop_c'"):
        load_client(config(tmp_path, client_column=None, clients=["shop_c"]), "shop_c", 0)


def test_a_test_file_without_the_client_column_serves_every_client(tmp_path):
    path = write_csv(tmp_path / "f.csv", rows(40))
    shared = write_csv(
        tmp_path / "t.csv", [{"text": f"test {i}", "label": str(i % 2)} for i in range(12)]
    )
    made = config(path, test_path=str(shared), test_rows=6)
    a, b = load_client(made, "a", 0), load_client(made, "b", 0)
    assert texts(a.test) == texts(b.test) and len(a.test) == 6
    assert {r.domain for r in a.test} == {"a"}
    assert len(load_pooled(made, 0).test) == 6
    own = write_csv(tmp_path / "o.csv", rows(12, word="test"))
    assert all(" b " in r.text for r in load_client(config(path, test_path=str(own)), "b", 0).test)


def test_iid_deals_all_rows_out(tmp_path):
    path = write_csv(tmp_path / "f.csv", rows(50))
    made = config(path, client_column=None, partition="iid", clients=3, domain="shop")
    loaded = load_clients(made, 0)
    assert list(loaded) == ["client_0", "client_1", "client_2"]
    assert sorted(one.available + len(one.split.test) for one in loaded.values()) == [33, 33, 34]
    assert build_task(made).domains["client_2"] == "shop"


def test_dirichlet_skews_as_alpha_says():
    labels = [i % 4 for i in range(4000)]

    def skew(alpha: float) -> float:
        """Mean over clients of the largest share of one label."""
        shares = part.dirichlet(labels, 4, 5, alpha, part.named_random(0, "x"))
        assert sorted(row for share in shares for row in share) == list(range(4000))
        return (
            sum(
                max(Counter(labels[row] for row in share).values()) / len(share) for share in shares
            )
            / 5
        )

    assert skew(1000.0) < 0.3 < 0.45 < skew(0.1)
    for seed in range(20):
        for share in part.dirichlet(labels[:200], 4, 5, 0.5, part.named_random(seed, "x")):
            assert 1 not in Counter(labels[row] for row in share).values()
            assert len(share) >= part.DIRICHLET_MIN_ROWS
    with pytest.raises(ConfigError, match=r"dirichlet_alpha: 0\.5 over 50 clients and 60 rows"):
        part.dirichlet(labels[:60], 4, 50, 0.5, part.named_random(0, "x"))


def test_apportion_by_hand_and_by_property():
    assert part.apportion(10, [60, 30, 10], [60, 30, 10]) == [6, 3, 1]
    assert part.apportion(3, [98, 1, 1], [98, 1, 1]) == [1, 1, 1]
    assert part.apportion(1, [98, 1, 1], [98, 1, 1]) == [1, 0, 0]
    assert part.apportion(10, [5, 5, 0], [2, 5, 0]) == [2, 5, 0]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(0, 120))
def test_apportion_gives_all_there_is(sizes, total):
    counts = part.apportion(total, sizes, sizes)
    assert sum(counts) == min(total, sum(sizes))
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    if sum(sizes) > total >= len(sizes):
        assert all(
            abs(count - total * size / sum(sizes)) < len(sizes)
            for count, size in zip(counts, sizes, strict=True)
        )


@pytest.fixture
def no_cache_at_home(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("no_cache_at_home")
def test_a_local_data_set_folder_through_datasets(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_csv(folder / "train.csv", rows(60))
    write_csv(folder / "test.csv", rows(10, word="test"))
    values = {
        "name": "h",
        "source": "hub",
        "dataset": str(folder),
        "test_split": "test",
        "client_column": "domain",
        "labels": LABELS,
    }
    made = check(TaskConfig, values, "task")
    assert client_names(made) == ("a", "b")
    split = load_client(made, "b", 0)
    assert (len(split.train), len(split.validation), len(split.test)) == (48, 12, 10)
    assert all(int(r.text.split()[-1]) % 2 == r.label for r in split.train + split.test)
    with pytest.raises(ConfigError, match=r"split dev: could not be loaded"):
        load_client(check(TaskConfig, {**values, "test_split": "dev"}, "task"), "b", 0)
    with pytest.raises(ConfigError, match=r"no column 'review'; columns: domain, label, text"):
        load_client(check(TaskConfig, {**values, "text_column": "review"}, "task"), "b", 0)


@pytest.mark.usefixtures("no_cache_at_home")
def test_class_labels_of_a_data_set_by_number_and_by_name(tmp_path):
    import datasets
    from fedduet.tasks.data.hub import read_hub

    (tmp_path / "set").mkdir()
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    data = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    data.to_parquet(str(tmp_path / "set" / "train.parquet"))
    by_number = read_hub(str(tmp_path / "set"), None, "train", Columns("text", "label"), {"0", "1"})
    by_name = read_hub(
        str(tmp_path / "set"), None, "train", Columns("text", "label"), {"neg", "pos"}
    )
    assert ([row.label for row in by_number], [row.label for row in by_name]) == (
        ["1", "0"],
        ["pos", "neg"],
    )
