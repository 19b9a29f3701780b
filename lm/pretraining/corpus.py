"""Documents for pre-training: rows of text files, filtered, worded by a template, no forbidden or
repeated text."""

import csv
import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

FORMATS = ("csv", "jsonl", "parquet", "txt")
STYLES = ("as_is", "tokenized")


@dataclass(frozen=True)
class Source:
    """One text file and how its rows become documents.

    `path` is relative to the root the corpus is read with. A row is kept when every column of
    `keep` holds one of the listed values and no column of `exclude` does (values as they stand in
    the file). Then `set` overwrites columns, `map` renames values (a value that `map` does not list
    is an error), and `template` words the row. `text` names the column that carries the free text:
    it is restyled (`style`), cut to `max_words` white-space words (0: never), and compared with
    other rows. A document counts `repeat` times in one epoch of training. Only documents of sources
    with `held_out` true may be drawn into the held-out part. `contrast` names one column of the
    template and all its values as worded (column -> values): the alternatives for the label
    contrast.
    """

    path: str
    template: str = "{text}"
    text: str = "text"
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exclude: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    map: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    set: Mapping[str, str] = field(default_factory=dict)
    style: str = "as_is"
    max_words: int = 0
    repeat: int = 1
    held_out: bool = True
    contrast: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(
                f"{self.path}: style is {self.style!r}, allowed are {', '.join(STYLES)}"
            )
        if self.repeat < 1 or self.max_words < 0:
            raise ValueError(
                f"{self.path}: repeat is {self.repeat} and max_words {self.max_words}, allowed are"
                " >= 1, >= 0"
            )
        for column, values in self.contrast.items():
            header = self.template.partition("{" + self.text + "}")[0]
            if len(self.contrast) > 1 or len(set(values)) < 2 or "{" + column + "}" not in header:
                raise ValueError(
                    f"{self.path}: contrast is {dict(self.contrast)!r}, allowed is one column that"
                    f" stands in the template before {{{self.text}}}, with at least 2 values"
                )


@dataclass(frozen=True)
class Document:
    """One training text, how often it counts in an epoch, the row it was made from (as worded), its
    source."""

    text: str
    repeat: int = 1
    may_hold_out: bool = True
    row: Mapping[str, str] = field(default_factory=dict)
    source: Source | None = None


@dataclass(frozen=True)
class SourceCount:
    """What one source gave: rows read, rows its filters refused, forbidden rows, repeated or empty
    rows, documents."""

    path: str
    rows: int
    filtered: int
    forbidden: int
    repeated: int
    documents: int
    repeat: int


@dataclass(frozen=True)
class Corpus:
    documents: tuple[Document, ...]
    counts: tuple[SourceCount, ...] = ()


def source_from_mapping(entry: Mapping, where: str) -> Source:
    """A `Source` from a YAML mapping; single values stand for lists of one; unknown keys are
    refused by name."""
    allowed = {item.name for item in fields(Source)}
    unknown = sorted(set(entry) - allowed)
    if unknown:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}, allowed are {', '.join(sorted(allowed))}"
        )
    if "path" not in entry:
        raise ValueError(f"{where}: the key 'path' is missing")
    values = dict(entry)
    for key in ("keep", "exclude", "contrast"):
        columns = values.get(key, {})
        values[key] = {
            c: tuple(str(v) for v in (vs if isinstance(vs, list | tuple) else [vs]))
            for c, vs in columns.items()
        }
    values["set"] = {column: str(value) for column, value in values.get("set", {}).items()}
    values["map"] = {
        c: {str(old): str(new) for old, new in m.items()} for c, m in values.get("map", {}).items()
    }
    return Source(**values)


def source_from_text(spec: str) -> Source:
    r"""A `Source` from one `--data` argument: `key=value` pairs separated by commas, in any order.

    Keys are those of `Source`; `map.COLUMN.OLD=NEW`, `set.COLUMN=VALUE`, `keep.COLUMN=A|B`,
    `exclude.COLUMN=A|B` and `contrast.COLUMN=A|B` fill the mappings. `\n` in a value is a line
    break. A comma only separates where a key and `=` follow, so templates may hold commas.
    """
    names = "|".join(item.name for item in fields(Source))
    entry: dict = {}
    for part in re.split(rf",(?=(?:{names})(?:\.[^=,]+)?=)", spec):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"--data: {part!r} is not of the form key=value")
        name, *columns = key.split(".", 2)
        value = value.replace("\\n", "\n")
        if name == "map" and len(columns) == 2:
            entry.setdefault("map", {}).setdefault(columns[0], {})[columns[1]] = value
        elif name == "set" and len(columns) == 1:
            entry.setdefault("set", {})[columns[0]] = value
        elif name in ("keep", "exclude", "contrast") and len(columns) == 1:
            entry.setdefault(name, {})[columns[0]] = value.split("|")
        elif columns or name in ("map", "set", "keep", "exclude", "contrast"):
            raise ValueError(
                f"--data: the key {key!r} is not of the form map.COLUMN.OLD, set.COLUMN or"
                " keep.COLUMN"
            )
        elif name in ("repeat", "max_words"):
            if not value.isdigit():
                raise ValueError(f"--data: {name} is {value!r}, allowed is a whole number")
            entry[name] = int(value)
        elif name == "held_out":
            if value not in ("true", "false"):
                raise ValueError(f"--data: held_out is {value!r}, allowed are true and false")
            entry[name] = value == "true"
        else:
            entry[name] = value
    return source_from_mapping(entry, "--data")


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a csv, jsonl, txt (each also .gz) or parquet file, all values as text.

    A txt file's rows have the one column `text`: paragraphs between blank lines, or lines when no
    line is blank.
    """
    plain = path.name.removesuffix(".gz")
    kind = plain.rsplit(".", 1)[-1]
    if kind not in FORMATS:
        raise ValueError(
            f"{path}: the ending {kind!r} is not known, allowed are {', '.join(FORMATS)} (also .gz)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if kind == "parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield {key: "" if value is None else str(value) for key, value in row.items()}
        return
    opened = gzip.open if path.name.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8", newline="") as stream:
        if kind == "csv":
            csv.field_size_limit(10**9)
            for row in csv.DictReader(stream):
                yield {key: value or "" for key, value in row.items() if key is not None}
        elif kind == "jsonl":
            for number, line in enumerate(stream, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except json.JSONDecodeError as error:
                        raise ValueError(
                            f"{path}: line {number} is not JSON ({error.msg})"
                        ) from None
                    if not isinstance(row, dict):
                        raise ValueError(
                            f"{path}: line {number} is a {type(row).__name__}, allowed is an object"
                        )
                    yield {key: "" if value is None else str(value) for key, value in row.items()}
        else:
            whole = stream.read().replace("\r\n", "\n").strip()
            paragraphs = re.split(r"\n\s*\n", whole)
            yield from (
                {"text": part.strip()}
                for part in (paragraphs if len(paragraphs) > 1 else whole.split("\n"))
            )


def letters_and_digits(text: str) -> str:
    """The form in which two texts are compared: lower case, only letters and digits (our
    choice)."""
    return "".join(filter(str.isalnum, text.lower()))


def tokenized_style(text: str) -> str:
    """Lower case with spaces around punctuation and before clitics (n't, 's), like
    Treebank-tokenised review sets."""
    text = text.lower()
    text = re.sub(r"\.{2,}", " ... ", text)
    text = re.sub(r"(?<=\w)n't\b", " n't", text)
    text = re.sub(r"(?<=\w)'(s|m|d|re|ve|ll)\b", r" '\1", text)
    text = re.sub(r"([!?;()\[\]$&\"*])", r" \1 ", text)
    text = re.sub(r"([,:])(?!\d)", r" \1 ", text)
    text = re.sub(r"(?<=[^\s.])\.(?=\s|$)", " .", text)
    return " ".join(text.split())


def cut_to_words(text: str, words: int) -> str:
    """The first `words` white-space words, ended at the last sentence mark if one stands in their
    second half."""
    parts = text.split(" ")
    if words == 0 or len(parts) <= words:
        return text
    kept = parts[:words]
    for end in range(words, words // 2, -1):
        if kept[end - 1][-1:] in (".", "!", "?"):
            return " ".join(kept[:end])
    return " ".join(kept)


def _passes(source: Source, row: Mapping[str, str]) -> bool:
    return all(row[column] in values for column, values in source.keep.items()) and not any(
        row[column] in values for column, values in source.exclude.items()
    )


def _selected(source: Source, root: Path) -> Iterator[tuple[int, dict[str, str] | None]]:
    """(row number, row) of a source; the row is None when the filters refuse it. Unknown columns
    are errors."""
    path = root / source.path
    used = {source.text, *source.keep, *source.exclude, *source.map} - set(source.set)
    used |= template_columns(source.template) - set(source.set)
    for number, row in enumerate(read_rows(path), 1):
        missing = sorted(used - set(row))
        if missing:
            raise ValueError(
                f"{path}: row {number} has no column {missing[0]!r}, it has"
                f" {', '.join(sorted(row))}"
            )
        yield number, row if _passes(source, row) else None


def word_row(source: Source, row: Mapping[str, str], where: str) -> dict[str, str]:
    """The row after `set`, `map`, `style` and `max_words`."""
    worded = {**row, **source.set}
    for column, names in source.map.items():
        if worded[column] not in names:
            raise ValueError(
                f"{where}: column {column!r} is {worded[column]!r}, map lists"
                f" {', '.join(sorted(names))}"
            )
        worded[column] = names[worded[column]]
    text = (
        tokenized_style(worded[source.text])
        if source.style == "tokenized"
        else worded[source.text].strip()
    )
    return {**worded, source.text: cut_to_words(text, source.max_words)}


def template_columns(template: str) -> set[str]:
    """The columns that a template names in braces."""
    return set(re.findall(r"\{(\w+)\}", template))


def fill_template(template: str, row: Mapping[str, str]) -> str:
    """`{column}` replaced by the row's value, in one pass, so that braces inside a value stay as
    they are."""
    return re.sub(r"\{(\w+)\}", lambda match: row[match[1]], template)


def read_corpus(sources: Sequence[Source], root: Path, forbidden: Sequence[Source] = ()) -> Corpus:
    """Documents of all sources in order; none whose text stands in `forbidden` or in an earlier row
    (see `letters_and_digits`), so that the same text is never trained on and held out at once."""
    banned = {
        letters_and_digits(row[source.text])
        for source in forbidden
        for _, row in _selected(source, root)
        if row
    }
    seen: set[str] = set()
    documents: list[Document] = []
    counts: list[SourceCount] = []
    for source in sources:
        rows = refused = blocked = repeated = 0
        before = len(documents)
        for number, row in _selected(source, root):
            rows += 1
            if row is None:
                refused += 1
                continue
            form = letters_and_digits(row[source.text])
            if form in banned:
                blocked += 1
            elif not form or form in seen:
                repeated += 1
            else:
                seen.add(form)
                worded = word_row(source, row, f"{root / source.path}: row {number}")
                documents.append(
                    Document(
                        fill_template(source.template, worded),
                        source.repeat,
                        source.held_out,
                        worded,
                        source,
                    )
                )
        counts.append(
            SourceCount(
                source.path,
                rows,
                refused,
                blocked,
                repeated,
                len(documents) - before,
                source.repeat,
            )
        )
    return Corpus(tuple(documents), tuple(counts))
