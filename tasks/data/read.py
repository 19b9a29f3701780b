"""Rows of text files (csv, jsonl, parquet; gzip), each with its number, or a sentence that says
what is wrong where."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedduet.conf.check import ConfigError, nearest
from fedduet.tasks.labels import raw_value

FORMATS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
# told of a bad row, in a sentence that names file, row and line; returns where rows may be left out
OnBad = Callable[[str], None]
# the csv module's default of 131,072 characters is shorter than some reviews
_FIELD_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Columns:
    """Which columns hold the text, the raw label, and (optional) the client and the user."""

    text: str
    label: str
    client: str | None = None
    client_needed: bool = True  # False: rows without that column have the client ""
    user: str | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        client = self.client if self.client_needed else None
        return tuple(name for name in (self.text, self.label, client, self.user) if name)

    def among(self, found: Sequence[str]) -> list[str]:
        """Those of the columns that `found` has, each once."""
        return [
            name
            for name in dict.fromkeys((self.text, self.label, self.client, self.user))
            if name in found and name
        ]


@dataclass(frozen=True)
class Row:
    """One row as read: `label`, `client` and `user` as `raw_value` gives them, `where` names file
    and row for error sentences."""

    text: str
    label: str
    client: str
    where: str
    user: str = ""


def fail(problem: str) -> None:
    """The first bad row ends the reading. Raises ConfigError."""
    raise ConfigError(problem)


def file_format(path: Path) -> str | None:
    """The one of FORMATS that `path` ends in."""
    name = path.name.casefold()
    return next((ending for ending in reversed(FORMATS) if name.endswith(ending)), None)


def stem(path: Path) -> str:
    """The file's name without its format ending."""
    ending = file_format(path)
    return path.name[: -len(ending)] if ending else path.name


def read_rows(path: Path, columns: Columns, on_bad: OnBad = fail) -> list[Row]:
    """Every good row of `path`; row 1 is the first after a csv header, or the first line of jsonl.

    Broken rows, and rows whose text is no text or whose user is not named, go to `on_bad`. Raises
    ConfigError for what concerns the whole file: none there, a missing column, an unknown format,
    bytes that are not UTF-8, a quote that never ends, no rows.
    """
    path, rows, empty = path.absolute(), [], True
    for number, values in read_values(path, columns, on_bad):
        empty = False
        try:
            rows.append(as_row(values, columns, f"{path}: row {number}"))
        except ConfigError as problem:
            on_bad(str(problem))
    if empty:
        raise ConfigError(f"{path}: holds no rows")
    return rows


def read_values(
    path: Path, columns: Columns | None = None, on_bad: OnBad = fail
) -> Iterator[tuple[object, dict[str, Any]]]:
    """(number, values by column) of every whole row, before it is looked at; `columns` that must be
    there (None: whichever there are). Raises as `read_rows`."""
    path = path.absolute()
    if not path.is_file():
        raise ConfigError(
            f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}"
        )
    ending = file_format(path)
    if ending is None:
        raise ConfigError(
            f"{path}: found the ending {path.suffix!r}; allowed: {', '.join(FORMATS)}"
        )
    if ending == ".parquet":
        return _parquet(path, columns)
    if ending.startswith(".csv"):
        return _csv(path, _text(path), columns, on_bad)
    return _jsonl(path, _text(path), on_bad)


def as_row(values: dict[str, Any], columns: Columns, where: str) -> Row:
    """One row from its values. Raises ConfigError when a column is missing, the text is no text, or
    a needed user is not named."""
    check_columns(columns, list(values), where)
    text = values[columns.text]
    if not isinstance(text, str):
        raise ConfigError(f"{where}: column {columns.text!r} holds {text!r}, not a text")
    client = raw_value(values[columns.client]) if columns.client in values else ""
    user = raw_value(values[columns.user]) if columns.user else ""
    if columns.user and not user:
        raise ConfigError(f"{where}: column {columns.user!r} is empty; needed: whose row it is")
    return Row(text, raw_value(values[columns.label]), client, where, user)


def check_columns(columns: Columns, found: Sequence[str], where: str) -> None:
    """Raises ConfigError naming the first column that is not among `found`, and those that are."""
    for name in columns.needed:
        if name not in found:
            hint = nearest(name, list(found))
            there = "" if hint.startswith("allowed") else f"; columns: {', '.join(sorted(found))}"
            raise ConfigError(
                f"{where}: no column {name!r}; {hint.replace('allowed', 'columns')}{there}"
            )


def _text(path: Path) -> str:
    data = path.read_bytes()
    if path.name.casefold().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as failure:
            raise ConfigError(f"{path}: not a whole gzip file ({failure})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = data.count(b"\n", 0, failure.start) + 1
        raise ConfigError(
            f"{path}: line {line}, byte offset {failure.start}: byte 0x{data[failure.start]:02x} is"
            " not UTF-8; save the file as UTF-8"
        ) from None


def _csv(
    path: Path, text: str, columns: Columns | None, on_bad: OnBad
) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 0
    try:
        header = next(reader, None)
        if not header:
            raise ConfigError(f"{path}: is empty; needed: a header row and rows")
        header = [name.strip() for name in header]
        if len(set(header)) < len(header):
            raise ConfigError(
                f"{path}: a column name stands twice in the header: {', '.join(header)}"
            )
        if columns:
            check_columns(columns, header, str(path))
        after = reader.line_num
        for values in reader:
            line, after = after + 1, reader.line_num
            if not values:
                continue
            number += 1
            if len(values) != len(header):
                on_bad(
                    f"{path}: row {number} (line {line}): {len(values)} fields, but the header has"
                    f" {len(header)}"
                )
                continue
            yield f"{number} (line {line})", dict(zip(header, values, strict=True))
    except csv.Error as failure:
        raise ConfigError(
            f"{path}: row {number + 1} (line {reader.line_num}): not proper CSV ({failure})"
        ) from None


def _jsonl(path: Path, text: str, on_bad: OnBad) -> Iterator[tuple[int, dict[str, Any]]]:
    # not splitlines: U+2028 may stand inside a string
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as failure:
            on_bad(f"{path}: row {number}: not JSON ({failure})")
            continue
        if not isinstance(values, dict):
            on_bad(f"{path}: row {number}: found {type(values).__name__}, needed a JSON object")
            continue
        yield number, values


def _parquet(path: Path, columns: Columns | None) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        if columns:
            check_columns(columns, names, str(path))
        wanted = columns.among(names) if columns else names
        table = pyarrow.parquet.read_table(path, columns=wanted)
    except pyarrow.ArrowInvalid as failure:
        raise ConfigError(f"{path}: not a Parquet file ({failure})") from None
    yield from enumerate(table.to_pylist(), start=1)
