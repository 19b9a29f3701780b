"""What a data set holds: counts, lengths, odd rows, and every bad row with its line."""

from __future__ import annotations

import gzip
import json

import pytest
from fedduet.conf.check import ConfigError
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.columns import columns_of, guess
from fedduet.tasks.data.load import load_clients
from fedduet.tasks.data.profile import profile, ranges

# line 1 is the head; of every site eight good rows of each label
GOOD = [(site, f"{site} says words that are number {i}", str(i % 2)) for site in "ab" for i in range(16)]  # fmt: skip
DIRTY = [
    ("a", "", "1"),  # line 34
    ("a", "   ", "0"),  # line 35
    ("a", "a label that nobody lists", "2"),  # line 36
    ("", "a row of nobody at all", "1"),  # line 37
    ("c", "a row of a site that is left out", "1"),  # line 38
    ("b", "so so", "1"),  # line 39, odd
    ("b", "<p>markup in it &amp; more</p>", "0"),  # line 40, odd
    ("a", "b says words that are number 0", "1"),  # line 41: b's, with another label
    ("b", "b says words that are number 1", "1"),  # line 42: a repeat
]


def write(tmp_path, rows, tail=""):
    text = "site,note,code\n" + "".join(f"{site},{note},{code}\n" for site, note, code in rows)
    (tmp_path / "f.csv").write_text(text + tail)
    return tmp_path / "f.csv"


def config(path, **other):
    values = {"text_column": "note", "label_column": "code", "client_column": "site"}
    values |= {"clients": ["a", "b"], "labels": {0: "low", 1: "high"}}
    return TaskConfig(name="t", path=str(path), **values | other)


def test_everything_that_is_odd_or_bad_is_told_at_once_with_its_line(tmp_path):
    path = write(tmp_path, [*GOOD, *DIRTY], "b,one,field,too much\n")  # the last is line 43
    found = profile(
        config(path), 0, {"slm.max_tokens": (lambda texts: [len(t.split()) for t in texts], 6)}
    )
    allowed = "which task.labels does not list; allowed: '0', '1'"
    assert found.bad == {
        "4 fields, but the header has 3": {str(path): (43,)},
        "column 'note' is empty": {str(path): (34, 35)},
        f"column 'code' holds '2', {allowed}": {str(path): (36,)},
    }
    assert found.odd == {"fewer than 3 words": (39,), "HTML tags or entities": (40,)}
    assert (found.blank_sites, found.other_sites) == (1, {"c": 1})
    assert (found.two_labels, found.two_sites) == (1, 1)
    a, b = found.sites["a"], found.sites["b"]
    assert a.labels == {"low": 7, "high": 7} and (a.train, a.validation, a.test) == (11, 3, 3)
    assert (a.bad, a.repeated, b.bad, b.repeated) == (3, 0, 0, 1)
    assert found.lengths["slm.max_tokens"].over == sum(
        len(note.split()) > 6 for _, note, _ in [*GOOD, *DIRTY]
    )
    assert found.rows == len(GOOD) + len(DIRTY) and not found.problem
    json.dumps(found.to_dict())


def test_a_run_stops_at_a_bad_row_or_leaves_it_out_and_counts_it(tmp_path):
    path = write(tmp_path, [*GOOD, *DIRTY[:3]])
    with pytest.raises(ConfigError, match=r"line 34\).*is empty.*task.on_bad_row=drop"):
        load_clients(config(path), 0)
    loaded = load_clients(config(path, on_bad_row="drop"), 0)
    clean = load_clients(config(write(tmp_path, GOOD)), 0)
    assert loaded["a"].bad == 3 and loaded["b"].bad == 0
    assert {site: one.split for site, one in loaded.items()} == {
        site: one.split for site, one in clean.items()
    }
    text = b'{"note": "fine words here", "code": 1, "site": "a"}\nno json\n[3]\n{"note": 5, "code": 1, "site": "a"}\n'
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(text))
    found = profile(config(tmp_path / "f.jsonl.gz", clients=["a"]), 0).bad
    lines = {what.split(" (")[0]: next(iter(files.values())) for what, files in found.items()}
    assert lines == {
        "not JSON": (2,),
        "found list, needed a JSON object": (3,),
        "column 'note' holds 5, not a text": (4,),
    }


def test_lines_are_where_rows_begin_in_the_file(tmp_path):
    (tmp_path / "f.csv").write_text('site,note,code\na,"two\nlines",7\n\na,plain words,7\n')
    found = profile(config(tmp_path / "f.csv", clients=["a"]), 0)
    ((lines,),) = (list(files.values()) for files in found.bad.values())
    assert lines == (2, 5) and found.problem
    assert ranges([9, 3, 4, 5, 12]) == "3-5, 9, 12" and ranges([]) == ""


def test_columns_that_nobody_described_are_guessed(tmp_path):
    rows = [
        (site, f"a longer note about case {i} of {site}", i % 2) for site in "ab" for i in range(15)
    ]
    found = columns_of(write(tmp_path, rows))
    assert [one.name for one in found] == ["site", "note", "code"]
    assert found[0].values == {"a": 15, "b": 15} and found[1].values == {} and found[1].words == 8
    assert guess(found) == {"text": "note", "label": "code", "client": "site"}
