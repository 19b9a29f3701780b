"""Pre-training text: source specs, readers, filters, style, forbidden and repeated texts, the
reviews recipe."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from fedduet.lm.pretraining.corpus import (
    Source,
    cut_to_words,
    fill_template,
    letters_and_digits,
    read_corpus,
    read_rows,
    source_from_mapping,
    source_from_text,
    tokenized_style,
)
from fedduet.scripts.pretrain import config_from, main, parser
from pyarrow import parquet

REPOSITORY = Path(__file__).parents[3]
PRIVATE = ("apparel", "baby", "camera_photo", "health_personal_care")


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_data_argument_golden():
    spec = (
        r"path=train.csv.gz,template=Product: {domain}, rated {label}\nReview:"
        r" {text},map.label.0=negative,"
        "map.label.1=positive,exclude.domain=apparel|baby,keep.split=train,set.kind=review,repeat=3,held_out=false"
    )
    assert source_from_text(spec) == Source(
        path="train.csv.gz",
        template="Product: {domain}, rated {label}\nReview: {text}",
        keep={"split": ("train",)},
        exclude={"domain": ("apparel", "baby")},
        map={"label": {"0": "negative", "1": "positive"}},
        set={"kind": "review"},
        repeat=3,
        held_out=False,
    )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("train.csv", "'train.csv' is not of the form key=value"),
        ("template={text}", "the key 'path' is missing"),
        ("path=a.csv,repeat=many", "repeat is 'many', allowed is a whole number"),
        ("path=a.csv,map.label=x", "'map.label' is not of the form"),
        ("path=a.csv,style=loud", "style is 'loud', allowed are as_is, tokenized"),
        ("path=a.csv,repeat=0", "repeat is 0"),
    ],
)
def test_bad_data_argument(spec, words):
    with pytest.raises(ValueError, match=words):
        source_from_text(spec)


def test_unknown_key_of_a_source_is_named():
    with pytest.raises(ValueError, match=r"sources\[2\]: unknown key 'tempalte'"):
        source_from_mapping({"path": "a.csv", "tempalte": "x"}, "sources[2]")


def test_every_format_gives_the_same_rows(tmp_path):
    rows = [{"text": 'one,\n"two" é', "label": "1"}, {"text": "three", "label": "0"}]
    write_csv(tmp_path / "a.csv", rows)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    lines = "\n".join(json.dumps({**row, "label": int(row["label"])}) for row in rows) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert list(read_rows(tmp_path / name)) == rows, name


def test_txt_rows_are_paragraphs_else_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n \nfour\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    assert [row["text"] for row in read_rows(tmp_path / "a.txt")] == ["one\ntwo", "three", "four"]
    assert [row["text"] for row in read_rows(tmp_path / "b.txt.gz")] == ["one", "two"]


def test_bad_files_name_the_place(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{oops\n')
    with pytest.raises(ValueError, match=r"a\.jsonl: line 2 is not JSON"):
        list(read_rows(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="the ending 'docx' is not known"):
        list(read_rows(tmp_path / "a.docx"))
    with pytest.raises(FileNotFoundError, match=r"b\.csv: no such file"):
        list(read_rows(tmp_path / "b.csv"))


def test_filters_forbidden_repeats_and_wording(tmp_path):
    rows = [
        ("Good lamp!", 1, "home"),
        ("good LAMP", 1, "home"),  # repeats the first but for case and marks
        ("bad {label} knife", 0, "kitchen"),
        ("tiny socks", 1, "baby"),
        ("secret text", 0, "home"),
        ("...", 0, "home"),  # nothing left of it
    ]
    write_csv(tmp_path / "a.csv", [{"text": t, "label": n, "domain": d} for t, n, d in rows])
    write_csv(
        tmp_path / "private.csv",
        [{"text": "Secret, text.", "domain": "baby"}, {"text": "x", "domain": "home"}],
    )
    write_csv(tmp_path / "b.csv", [{"text": "BAD {label} knife"}, {"text": "x"}])
    sources = (
        Source(
            "a.csv",
            "{domain} / {label}: {text}",
            exclude={"domain": ("baby",)},
            map={"label": {"0": "negative", "1": "positive"}},
            repeat=3,
        ),
        Source(
            "b.csv", "{domain}: {text}", set={"domain": "tools"}, style="tokenized", held_out=False
        ),
    )
    corpus = read_corpus(sources, tmp_path, (Source("private.csv", keep={"domain": ("baby",)}),))
    assert [(d.text, d.repeat, d.may_hold_out) for d in corpus.documents] == [
        ("home / positive: Good lamp!", 3, True),
        ("kitchen / negative: bad {label} knife", 3, True),
        ("tools: x", 1, False),
    ]
    a, b = corpus.counts
    assert (a.rows, a.filtered, a.forbidden, a.repeated, a.documents) == (6, 1, 1, 2, 2)
    assert (b.rows, b.filtered, b.forbidden, b.repeated, b.documents) == (2, 0, 0, 1, 1)


def test_unmapped_value_and_missing_column_name_file_and_row(tmp_path):
    write_csv(tmp_path / "a.csv", [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}])
    with pytest.raises(ValueError, match=r"a\.csv: row 2: column 'label' is '2', map lists 0, 1"):
        read_corpus((Source("a.csv", map={"label": {"0": "n", "1": "p"}}),), tmp_path)
    with pytest.raises(
        ValueError, match=r"a\.csv: row 1 has no column 'domain', it has label, text"
    ):
        read_corpus((Source("a.csv", "{domain}: {text}"),), tmp_path)


def test_tokenized_style_golden():
    raw = "I DON'T like it (at all), it's \"bad\"... paid $1,250.99 in the U.S. at 10:30. Really?!"
    assert (
        tokenized_style(raw)
        == "i do n't like it ( at all ) , it 's \" bad \" ... paid $ 1,250.99 in the u.s . at 10:30"
        " . really ? !"
    )


def test_style_changes_no_letter_or_digit():
    raw = "Can't   stop; won't stop: 3.5 stars, \"OK\" (mostly)...\nEnd."
    assert letters_and_digits(tokenized_style(raw)) == letters_and_digits(raw)


def test_cut_ends_at_the_last_sentence_of_the_second_half():
    assert cut_to_words("a b . c d e", 5) == "a b ."
    # a sentence that early would lose too much
    assert cut_to_words("a . b c d e f", 6) == "a . b c d e"
    assert cut_to_words("a b c", 3) == "a b c"
    assert cut_to_words("a b c", 0) == "a b c"


def test_values_are_not_filled_again():
    assert fill_template("{a}-{b}", {"a": "{b}", "b": "x"}) == "{b}-x"


# --- the command and its recipe -------------------------------------------------------------------


def test_command_trains_from_arguments_and_repeats_nothing(tmp_path, capsys):
    write_csv(
        tmp_path / "a.csv",
        [{"text": f"lamp number {i} is fine .", "label": i % 2} for i in range(40)],
    )
    argv = [
        "--from",
        "tiny",
        "--out",
        str(tmp_path / "out"),
        "--root",
        str(tmp_path),
        "--tokens",
        "600",
        "--batch",
        "2",
    ]
    argv += ["--block", "32", "--vocab-size", "300", "--precision", "fp32"]
    argv += [
        "--data",
        r"path=a.csv,template=Rating: {label}\n{text},map.label.0=bad,map.label.1=good",
    ]
    assert main(argv) == 0
    card = (tmp_path / "out" / "latest" / "README.md").read_text()
    assert "| a.csv | 40 | 0 | 0 | 0 | 40 | 1 |" in card
    assert "command: fedduet pretrain --from tiny" in card
    stamp = (tmp_path / "out" / "final" / "model.safetensors").stat().st_mtime_ns
    assert main(argv) == 0
    assert (tmp_path / "out" / "final" / "model.safetensors").stat().st_mtime_ns == stamp
    assert main([*argv, "--seed", "5"]) == 1
    assert "other text or settings" in capsys.readouterr().out.replace("\n", " ")


def test_bad_config_file_is_one_sentence(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("minuts: 3\n")
    assert main(["--config", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "out")]) == 1
    assert "unknown key 'minuts'" in capsys.readouterr().out.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def reviews_config(root: str | None = None):
    argv = ["--config", str(REPOSITORY / "conf/pretrain/reviews.yaml"), "--out", "unused"]
    return config_from(parser().parse_args(argv + (["--root", root] if root else [])))


def test_reviews_recipe_is_valid_and_keeps_private_domains_out():
    config = reviews_config("elsewhere")
    assert config.root == Path("elsewhere")
    for source in config.sources:
        assert "test" not in source.path
        if "fdu_mtl" in source.path:
            assert set(PRIVATE) <= set(source.exclude["domain"])
        if "blitzer" in source.path:
            assert source.keep["split"] == ("train",)
    assert {(s.path, s.keep.get("domain")) for s in config.forbidden} == {
        ("fdu_mtl/train.csv.gz", PRIVATE),
        ("fdu_mtl/unlabeled.csv.gz", PRIVATE),
        ("fdu_mtl/test.csv.gz", None),
    }


@pytest.mark.skipif(
    not (REPOSITORY / "../shared/data/fdu_mtl").is_dir(), reason="the review files are not here"
)
def test_reviews_recipe_on_the_real_files_holds_no_private_text():
    config = reviews_config(str(REPOSITORY / "../shared/data"))
    corpus = read_corpus(config.sources, config.root, config.forbidden)
    domains = Counter(document.row["domain"] for document in corpus.documents)
    assert not set(PRIVATE) & set(domains) and len(domains) == 12
    private = set()
    for name in ("train", "unlabeled", "test"):
        for row in read_rows(config.root / f"fdu_mtl/{name}.csv.gz"):
            if name == "test" or row["domain"] in PRIVATE:
                private.add(letters_and_digits(row["text"]))
    whole = [d for d in corpus.documents if len(d.row["text"].split()) < 95]  # certainly not cut
    assert len(whole) > 15_000
    assert not any(letters_and_digits(document.row["text"]) in private for document in whole)
