"""Who holds which rows: files, columns and random shares become one pool of records per client,
before any split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedduet.conf.check import ConfigError, nearest
from fedduet.tasks import builtin
from fedduet.tasks.builtin import world
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data import partition as part
from fedduet.tasks.data.hub import read_hub
from fedduet.tasks.data.read import Columns, OnBad, Row, fail, file_format, read_rows, stem
from fedduet.tasks.labels import indices, wordings
from fedduet.tasks.task import Record

BUILTIN = "builtin:"  # task.root: data that came with the project
BUILTIN_FOLDER = Path(builtin.__file__).parent


@dataclass(frozen=True)
class Pool:
    """A client's rows before they are split; `test` None means that it is carved from `train`."""

    train: tuple[Record, ...]
    test: tuple[Record, ...] | None
    cut: int = 0
    repeated: int = 0  # rows already dropped, of the whole file
    bad: int = 0  # rows left out because they cannot be used (task.on_bad_row=drop)


def label_wordings(config: TaskConfig) -> tuple[str, ...]:
    """Label index -> wording. The built-in world has its own where the config gives none."""
    return wordings(config.labels) or world.LABELS


def domain_wording(config: TaskConfig, client: str) -> str:
    """How prompts call the client's domain."""
    if isinstance(config.clients, Mapping):
        return config.clients[client]
    if config.domain is not None:
        return config.domain.replace("{client}", client)
    if config.source == "world":
        return world.domain_of(client)
    return client.replace("_", " ")


def client_names(config: TaskConfig) -> tuple[str, ...]:
    """The clients in order: as configured, or as the data has them (sorted). Raises ConfigError."""
    if config.source == "world":
        return world.client_names(config.clients)
    how = partition_of(config)
    if isinstance(config.clients, int):
        return tuple(f"client_{i}" for i in range(config.clients))
    if config.clients is not None:
        return tuple(config.clients)
    if how == "files":
        if files := _files(config, config.path):
            return tuple(sorted(files))
        raise ConfigError(
            f"task.clients: missing; {_located(config, str(config.path))} is one file, so give the"
            " one client's name"
        )
    rows = _train_rows(config, config.path, list[str]().append)  # what is bad is told later
    return tuple(sorted({row.client for row in rows if row.client}))


def partition_of(config: TaskConfig) -> str:
    """The configured partition, or what path, client_column and clients tell. Raises ConfigError
    when they tell nothing."""
    if config.partition is not None:
        return config.partition
    if isinstance(config.path, Mapping) or (
        config.source == "files" and _located(config, str(config.path)).is_dir()
    ):
        return "files"
    if isinstance(config.clients, int) and config.client_column is not None:
        raise ConfigError(
            f"task.clients: found the number {config.clients} with a client_column; give names, or"
            " client_column=null"
        )
    if config.client_column is not None:
        return "column"
    if isinstance(config.clients, int):
        return "iid"
    if config.source == "files" and config.clients is not None and len(config.clients) == 1:
        return "files"
    raise ConfigError(
        "task.partition: cannot tell who holds which rows; give client_column, one file per client,"
        " or clients=N with partition=iid"
    )


def read_pools(
    config: TaskConfig,
    known: Sequence[str],
    chosen: Sequence[str],
    seed: int,
    on_bad: OnBad | None = None,
) -> dict[str, Pool]:
    """The pool of each of the `chosen` clients, where `known` are all clients in order. Reads each
    file once. Bad rows go to `on_bad`; None: as `task.on_bad_row` says, counted in the pools."""
    how = partition_of(config)
    if how == "files":
        return {client: _file_pool(config, client, on_bad) for client in chosen}
    broken = _Bad(config, on_bad)  # before it is known whose row it is
    rows = _train_rows(config, config.path, broken)
    test = _test_rows(config, config.test_path, broken)
    if how == "column":
        return {client: _column_pool(config, rows, test, client, on_bad) for client in chosen}
    # the label alone decides the shares, so they are drawn before the domain is worded
    records, cut = _records(config, rows, "", broken)
    unique = list({record.text: record for record in reversed(records)}.values())[::-1]
    rng = part.named_random(seed, "partition")
    if how == "iid":
        shares = part.iid(len(unique), len(known), rng)
    else:
        kinds = len(label_wordings(config))
        shares = part.dirichlet(
            [record.label for record in unique], kinds, len(known), config.dirichlet_alpha, rng
        )
    shared = None if test is None else _records(config, test, "", broken)[0]
    pools = {}
    for client, share in zip(known, shares, strict=True):
        domain = domain_wording(config, client)
        if not share:
            raise ConfigError(
                f"client {client}: {len(unique)} rows are too few for {len(known)} clients"
            )
        pools[client] = Pool(
            tuple(replace(unique[row], domain=domain) for row in share),
            None if shared is None else tuple(replace(record, domain=domain) for record in shared),
            cut,
            len(records) - len(unique),
            broken.count,
        )
    return pools


def raw_rows(config: TaskConfig, on_bad: OnBad) -> list[Row]:
    """Every training row as the files have it, also of sites that the task leaves out; rows of a
    file of its own have the file's site as client. Raises ConfigError."""
    if partition_of(config) != "files":
        return _train_rows(config, config.path, on_bad)
    files = _files(config, config.path) or dict.fromkeys(client_names(config), str(config.path))
    return [
        replace(row, client=client)
        for client, file in files.items()
        for row in _train_rows(config, file, on_bad)
    ]


class _Bad:
    """Counts bad rows, and hands them on or ends the reading as `task.on_bad_row` says."""

    def __init__(self, config: TaskConfig, on_bad: OnBad | None) -> None:
        self.count = 0
        self._then = on_bad or (fail if config.on_bad_row == "fail" else None)

    def __call__(self, problem: str) -> None:
        self.count += 1
        if self._then is fail:
            fail(f"{problem} (all of them: fedduet data; task.on_bad_row=drop leaves them out)")
        elif self._then:
            self._then(problem)


def _column_pool(
    config: TaskConfig, rows: list[Row], test: list[Row] | None, client: str, on_bad: OnBad | None
) -> Pool:
    domain, bad = domain_wording(config, client), _Bad(config, on_bad)
    train, cut = _records(config, _of_client(config, rows, client, "training"), domain, bad)
    if test is None:
        return Pool(train, None, cut, bad=bad.count)
    mine = _of_client(config, test, client, "test") if any(row.client for row in test) else test
    records, more = _records(config, mine, domain, bad)
    return Pool(train, records, cut + more, bad=bad.count)


def _file_pool(config: TaskConfig, client: str, on_bad: OnBad | None) -> Pool:
    domain, bad = domain_wording(config, client), _Bad(config, on_bad)
    files = _files(config, config.path)
    if client not in files:
        if isinstance(config.path, str) and not _located(config, config.path).is_dir():
            files = {client: config.path}
        else:
            raise ConfigError(
                f"task.path: no file for client {client!r}; {nearest(client, list(files))}"
            )
    train, cut = _records(config, _train_rows(config, files[client], bad), domain, bad)
    tests = _files(config, config.test_path)
    if tests and client not in tests:
        raise ConfigError(
            f"task.test_path: no file for client {client!r}; {nearest(client, list(tests))}"
        )
    test = _test_rows(config, tests.get(client, config.test_path), bad)
    if test is None:
        return Pool(train, None, cut, bad=bad.count)
    if not tests and any(row.client for row in test):
        test = _of_client(config, test, client, "test")
    records, more = _records(config, test, domain, bad)
    return Pool(train, records, cut + more, bad=bad.count)


def _of_client(config: TaskConfig, rows: list[Row], client: str, kind: str) -> list[Row]:
    mine = [row for row in rows if row.client == client]
    if not mine:
        names = sorted({row.client for row in rows})
        file = rows[0].where.rsplit(": row ", 1)[0]
        raise ConfigError(
            f"{file}: no {kind} rows whose column {config.client_column!r} is {client!r};"
            f" {nearest(client, names)}"
        )
    return mine


def _records(
    config: TaskConfig, rows: Sequence[Row], domain: str, on_bad: OnBad
) -> tuple[tuple[Record, ...], int]:
    """(records, how many texts were cut). An empty text, or a label that task.labels does not list,
    goes to `on_bad`."""
    known = indices(config.labels)
    allowed = ", ".join(repr(raw) for raw in known)
    records, cut = [], 0
    for row in rows:
        text = row.text.strip()
        if not text:
            on_bad(f"{row.where}: column {config.text_column!r} is empty")
            continue
        if row.label not in known:
            on_bad(
                f"{row.where}: column {config.label_column!r} holds {row.label!r}, which"
                f" task.labels does not list; allowed: {allowed}"
            )
            continue
        if len(text) > config.max_chars:
            text, cut = _cut(text, config.max_chars), cut + 1
        records.append(Record(text, known[row.label], domain, row.user))
    return tuple(records), cut


def _cut(text: str, most: int) -> str:
    """The longest part of at most `most` characters that ends with a word; a single longer word is
    cut inside."""
    if text[most].isspace():
        return text[:most].rstrip()
    edge = max((match.start() for match in re.finditer(r"\s", text[:most])), default=0)
    return text[:edge].rstrip() if edge else text[:most]


def _located(config: TaskConfig, path: str) -> Path:
    if config.root and config.root.startswith(BUILTIN):
        return BUILTIN_FOLDER / config.root.removeprefix(BUILTIN) / path
    return (Path(config.root or "") / Path(path).expanduser()).expanduser().absolute()


def _files(config: TaskConfig, path: str | Mapping[str, str] | None) -> dict[str, str]:
    """client -> file of a mapping or a folder; empty for a single file. Raises ConfigError for a
    folder without files."""
    if path is None:
        return {}
    if isinstance(path, Mapping):
        return dict(path)
    folder = _located(config, path)
    if not folder.is_dir():
        return {}
    files = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file_format(file):
            if stem(file) in files:
                raise ConfigError(
                    f"{folder}: two files for client {stem(file)!r}: {file.name} and"
                    f" {Path(files[stem(file)]).name}"
                )
            files[stem(file)] = str(file)
    if not files:
        raise ConfigError(f"{folder}: no file in this folder ends in one of the known formats")
    return files


def _train_rows(config: TaskConfig, path: str | None, on_bad: OnBad) -> list[Row]:
    if config.source == "hub":
        return read_hub(
            str(config.dataset),
            config.subset,
            config.train_split,
            _columns(config),
            indices(config.labels),
            on_bad,
        )
    return read_rows(_one_file(config, "path", path), _columns(config), on_bad)


def _test_rows(config: TaskConfig, path: str | None, on_bad: OnBad) -> list[Row] | None:
    """Rows of the test file or split, with the client where it has the client column. None: the
    task has no test of its own."""
    columns = replace(_columns(config), client=config.client_column, client_needed=False, user=None)
    if config.source == "hub":
        if config.test_split is None:
            return None
        return read_hub(
            str(config.dataset),
            config.subset,
            config.test_split,
            columns,
            indices(config.labels),
            on_bad,
        )
    return (
        None if path is None else read_rows(_one_file(config, "test_path", path), columns, on_bad)
    )


def _columns(config: TaskConfig) -> Columns:
    by_column = partition_of(config) == "column"
    return Columns(
        config.text_column,
        config.label_column,
        config.client_column if by_column else None,
        user=config.user_column,
    )


def _one_file(config: TaskConfig, key: str, path: object) -> Path:
    how = partition_of(config)
    if not isinstance(path, str):
        raise ConfigError(f"task.{key}: found {path!r} with partition={how}; allowed: one file")
    file = _located(config, path)
    if file.is_dir():
        raise ConfigError(
            f"task.{key}: {file} is a folder; with partition={how} it must be one file"
        )
    return file
