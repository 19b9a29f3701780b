"""Reading text files of every format, and the sentences for broken ones."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from fedduet.conf.check import ConfigError
from fedduet.tasks.data.read import Columns, read_rows
from fedduet.tasks.labels import raw_value

# --- raw values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (" 1 ", "1"), (1.0, "1"), ("1.0", "1"), ("10.0", "10"), ("1.5", "1.5"), ("1.50", "1.5"), (-0.0, "0"), ("01", "01"),
     (True, "true"), ("False", "false"), ("10", "10"), ("", ""), ("+2.0", "2"), ("1e3", "1e3"), (100.0, "100")],
)  # fmt: skip
def test_raw_values_are_compared_as_wholes(value, expected):
    assert raw_value(value) == expected


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz", "f.jsonl", "f.jsonl.gz", "f.parquet"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    data = [
        {"text": 'two\nlines, "quoted" \u2028 \u00e9', "label": "1", "domain": "a"},
        {"text": "plain", "label": "0", "domain": "b"},
    ]
    path = tmp_path / name
    if "csv" in name:
        content = io.StringIO(newline="")
        writer = csv.DictWriter(content, ["text", "label", "domain"])
        writer.writeheader()
        writer.writerows(data)
        encoded = content.getvalue().encode()
        path.write_bytes(gzip.compress(encoded) if name.endswith("gz") else encoded)
    elif "jsonl" in name:
        content = "\n".join(
            json.dumps({**row, "label": int(row["label"])}, ensure_ascii=False) for row in data
        ).encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([{**row, "label": float(row["label"])} for row in data]), path
        )
    found = read_rows(path, Columns("text", "label", "domain"))
    assert [(row.text, row.label, row.client) for row in found] == [
        (r["text"], r["label"], r["domain"]) for r in data
    ]
    line = " (line 4)" if "csv" in name else ""  # below the header, and the first text has two
    assert found[1].where == f"{path}: row 2{line}"


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "f.csv").write_bytes("\ufefftext,label\nhello,1\n".encode())
    assert read_rows(tmp_path / "f.csv", Columns("text", "label"))[0].text == "hello"


def bad_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as failure:
        read_rows(tmp_path / name, Columns("text", "label", "domain"))
    assert str(tmp_path / name) in str(failure.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.csv", b"text,label,domain\nfine,1,a\nna\xefve,1,a\n", r"line 3, byte offset 29: byte 0xef is not UTF-8"),
        ("f.csv", b"review,label,domain\nx,1,a\n", r"no column 'text'; columns: domain, label, review"),
        ("f.csv", b"text,lable,domain\nx,1,a\n", r"no column 'label'; did you mean lable\?; columns: domain, lable, text"),
        ("f.csv", b"text,label,domain\nx,1,a\ny,1\n", r"row 2 \(line 3\): 2 fields, but the header has 3"),
        ("f.csv", b'text,label,domain\nx,1,a\n"open,1,a\n', r"row 2 \(line 3\): not proper CSV"),
        ("f.csv", b"", r"is empty; needed: a header row"),
        ("f.csv", b"text,label,domain\n", r"holds no rows"),
        ("f.csv.gz", b"text,label,domain\n", r"not a whole gzip file"),
        ("f.jsonl", b'{"text": "x", "label": 1, "domain": "a"}\n{"text": \n', r"row 2: not JSON"),
        ("f.jsonl", b'{"text": "x", "domain": "a"}\n', r"row 1: no column 'label'"),
        ("f.jsonl", b'{"text": null, "label": 1, "domain": "a"}\n', r"row 1: column 'text' holds None, not a text"),
        ("f.jsonl", b"[1]\n", r"row 1: found list, needed a JSON object"),
        ("f.parquet", b"PAR0", r"not a Parquet file"),
        ("f.xlsx", b"x", r"found the ending '.xlsx'; allowed: .csv"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_its_row(tmp_path, name, content, message):
    bad_file(tmp_path, name, content, message)
