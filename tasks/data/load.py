"""The rows of each client: read, checked, cut, freed of repeats, and split, the same for the same
seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fedduet.conf.check import ConfigError, Problems, nearest
from fedduet.tasks.builtin import world
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data import partition as part
from fedduet.tasks.data.by_user import split_by_user
from fedduet.tasks.data.pools import Pool, client_names, domain_wording, label_wordings, read_pools
from fedduet.tasks.data.read import OnBad
from fedduet.tasks.task import Prompts, Record, Split, Task

__all__ = [
    "ClientSummary",
    "Loaded",
    "build_task",
    "check_data",
    "client_names",
    "load_client",
    "load_clients",
    "load_pooled",
]


@dataclass(frozen=True)
class Loaded:
    """A client's split and what was done to get it.

    Counts are of the client's rows before its split was sized; with iid and dirichlet, `cut` and
    `repeated` are of the whole file.
    """

    split: Split
    per_label: tuple[int, ...]  # rows that training and validation were chosen from, by label index
    cut: int = 0  # texts longer than max_chars
    repeated: int = 0  # rows dropped from train because the same text stands in train already
    in_test: int = 0  # rows dropped from train because the same text stands in test
    bad: int = 0  # rows that cannot be used, left out by task.on_bad_row=drop

    @property
    def available(self) -> int:
        return sum(self.per_label)


def build_task(config: TaskConfig) -> Task:
    """The public description of the task. Reads data only where the clients' names stand nowhere
    else."""
    labels = label_wordings(config)
    document, control = config.prompts.completion_document, control_code(config)
    if document is None:
        document = control + config.separator + "{text}"
    return Task(
        name=config.name,
        labels=labels,
        domains={client: domain_wording(config, client) for client in client_names(config)},
        control_code=control,
        separator=config.separator,
        noun=config.noun,
        prompts=Prompts(
            config.prompts.chat_system,
            config.prompts.chat_augment,
            config.prompts.chat_judge,
            document,
        ),
        kind=config.kind,
        about=config.about or "",
        meanings=tuple(config.meanings_by_wording[label] for label in labels if config.meanings),
    )


def control_code(config: TaskConfig) -> str:
    """The configured control code, or one made of what the texts are said to be."""
    if config.control_code is not None:
        return config.control_code
    if config.source == "world":
        return world.CONTROL_CODE
    about = config.about or f"{config.noun}s about {{domain}}"
    meaning = " ({meaning})" if config.meanings else ""
    opening = about[:1].upper() + about[1:]
    return f"{opening}\nLabel: {{label}}{meaning}\n{config.noun.capitalize()}:"


def load_client(config: TaskConfig, client: str, seed: int, by_user: bool = False) -> Split:
    """One client's split. Raises ConfigError (see `load_clients`)."""
    return load_clients(config, seed, (client,), by_user)[client].split


def load_pooled(config: TaskConfig, seed: int, by_user: bool = False) -> Split:
    """The union over the clients, each record with its domain. A text of the pooled test is in
    neither of the other two."""
    splits = [loaded.split for loaded in load_clients(config, seed, None, by_user).values()]
    by_text = {record.text: record for split in reversed(splits) for record in reversed(split.test)}
    test = tuple(by_text.values())[::-1]  # a test set that clients share counts once
    seen = {record.text for record in test}

    def fresh(records: Sequence[Record]) -> tuple[Record, ...]:
        kept = []
        for record in records:
            if record.text not in seen:
                seen.add(record.text)
                kept.append(record)
        return tuple(kept)

    train = fresh([record for split in splits for record in split.train])
    return Split(train, fresh([record for split in splits for record in split.validation]), test)


def load_clients(
    config: TaskConfig,
    seed: int,
    clients: Sequence[str] | None = None,
    by_user: bool = False,
    on_bad: OnBad | None = None,
) -> dict[str, Loaded]:
    """The splits of `clients` (None: all), reading each file once. `by_user`: split for users as
    the unit of privacy (`tasks.data.by_user`).

    Raises ConfigError naming the file and the row, key or client: see `fedduet.tasks.data.read`,
    and unknown labels, empty texts, clients without rows, unknown clients. With
    `task.on_bad_row=drop` bad rows are left out and counted instead; `on_bad` is told of them
    whatever stands there.
    """
    known = client_names(config)
    for client in clients or ():
        if client not in known:
            raise ConfigError(f"task.clients: no client {client!r}; {nearest(client, list(known))}")
    chosen = tuple(clients) if clients is not None else known
    if config.source == "world":
        return {client: _world(config, client, seed) for client in chosen}
    pools = read_pools(config, known, chosen, seed, on_bad)
    kinds = len(label_wordings(config))
    split = split_by_user if by_user else _split
    return {
        client: Loaded(*split(config, pools[client], kinds, seed, client), pools[client].bad)
        for client in chosen
    }


def _split(
    config: TaskConfig, pool: Pool, kinds: int, seed: int, client: str
) -> tuple[Split, tuple[int, ...], int, int, int]:
    # the first of each text stays
    unique = tuple({record.text: record for record in reversed(pool.train)}.values())[::-1]
    repeated = pool.repeated + len(pool.train) - len(unique)
    if pool.test is None:
        rng = part.named_random(seed, client, "test")
        held = set(
            part.test_rows_of([record.label for record in unique], kinds, config.test_fraction, rng)
        )
        test = tuple(record for row, record in enumerate(unique) if row in held)
        train = tuple(record for row, record in enumerate(unique) if row not in held)
    else:
        test = pool.test
        in_test = {record.text for record in test}
        train = tuple(record for record in unique if record.text not in in_test)
    labels = [record.label for record in train]
    rng = part.named_random(seed, client, "train")
    chosen, held_out = part.train_and_validation(
        labels, kinds, config.rows_per_client, config.validation_rows, rng
    )
    if config.test_rows is not None:
        # one stream for every client: a test set that they share stays shared
        rng = part.named_random(seed, "test rows")
        rows = part.stratified([record.label for record in test], kinds, config.test_rows, rng)
        test = tuple(test[row] for row in rows)
    split = Split(tuple(train[row] for row in chosen), tuple(train[row] for row in held_out), test)
    in_test_count = 0 if pool.test is None else len(unique) - len(train)
    per_label = tuple(labels.count(label) for label in range(kinds))
    return split, per_label, pool.cut, repeated, in_test_count


def _world(config: TaskConfig, client: str, seed: int) -> Loaded:
    domain, wording = world.domain_of(client), domain_wording(config, client)
    rows = config.rows_per_client or world.DEFAULT_ROWS
    asked = rows + (-(-rows // 4) if config.validation_rows is None else config.validation_rows)
    tests = world.world_records(
        domain, config.test_rows or world.DEFAULT_TEST_ROWS, f"{seed}/{client}/test"
    )
    in_test = {record.text for record in tests}
    drawn = world.world_records(domain, asked + 8, f"{seed}/{client}/train")
    train = [record for record in drawn if record.text not in in_test]
    order = label_wordings(config)

    def worded(records: Sequence[Record]) -> tuple[Record, ...]:
        return tuple(
            Record(record.text, order.index(world.LABELS[record.label]), wording)
            for record in records
        )

    kept = [record.label for record in train]
    chosen, held = part.train_and_validation(
        kept, len(order), rows, asked - rows, part.named_random(seed, client, "train")
    )
    split = Split(
        worded([train[row] for row in chosen]), worded([train[row] for row in held]), worded(tests)
    )
    return Loaded(
        split,
        tuple(kept.count(label) for label in range(len(order))),
        in_test=len(drawn) - len(train),
    )


@dataclass(frozen=True)
class ClientSummary:
    """What a client holds, for people to read before a run: rows per split and label wording, and
    what was dropped or cut."""

    domain: str
    train: dict[str, int]
    validation: dict[str, int]
    test: dict[str, int]
    available: int
    cut: int
    repeated: int
    in_test: int
    users: int = 0  # of the training rows; 0: the task has no user column


def check_data(
    config: TaskConfig,
    seed: int,
    logical_batch: int | None = None,
    clients: Sequence[str] | None = None,
    by_user: bool = False,
) -> dict[str, ClientSummary]:
    """A summary of each of `clients` (None: all), or a ConfigError with all that training would run
    into.

    Beside the errors of `load_clients`: a label of which a client has one row only, a client whose
    rows are all of one label, an empty test split, and fewer training rows (`by_user`: users) than
    the logical batch.
    """
    labels, problems = label_wordings(config), Problems()
    found = {
        client: problems.of(check_site, config, client, loaded, labels, logical_batch, by_user)
        for client, loaded in load_clients(config, seed, clients, by_user).items()
    }
    problems.end()
    return found


def check_site(
    config: TaskConfig,
    client: str,
    loaded: Loaded,
    labels: Sequence[str],
    logical_batch: int | None = None,
    by_user: bool = False,
) -> ClientSummary:
    """The summary of one client, or the ConfigError of `check_data`."""
    split = loaded.split
    train, validation, test = (
        _label_counts(records, labels) for records in (split.train, split.validation, split.test)
    )
    for label in labels:
        if loaded.per_label[labels.index(label)] == 1:
            raise ConfigError(
                f"client {client}: one row is labelled {label!r} (repeats and rows of the test"
                " split aside); needed: none, or two, one to train on and one to validate"
            )
    if sum(rows > 0 for rows in train.values()) < 2:
        only = next((label for label in labels if train[label]), "none")
        raise ConfigError(
            f"client {client}: every training row is labelled {only!r}; needed: rows of two labels"
        )
    if not split.test:
        raise ConfigError(
            f"client {client}: no row is left for the test split; give test_path, or more rows"
        )
    users = len({record.user for record in split.train} - {""})
    units, kind = (
        (users, "users in the training rows") if by_user else (len(split.train), "training rows")
    )
    if logical_batch is not None and units < logical_batch:
        raise ConfigError(
            f"client {client}: {units} {kind}, fewer than the logical batch of {logical_batch};"
            " lower the logical batch, or give more rows (task.rows_per_client is"
            f" {config.rows_per_client}, rows there are {loaded.available})"
        )
    return ClientSummary(
        split.train[0].domain,
        train,
        validation,
        test,
        loaded.available,
        loaded.cut,
        loaded.repeated,
        loaded.in_test,
        users,
    )


def _label_counts(records: Sequence[Record], labels: Sequence[str]) -> dict[str, int]:
    counts = Counter(record.label for record in records)
    return {label: counts[index] for index, label in enumerate(labels)}
