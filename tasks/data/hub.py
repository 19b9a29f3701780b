"""Rows of a data set that the `datasets` library loads, from the hub or from a local folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fedduet.conf.check import ConfigError
from fedduet.tasks.data.read import Columns, OnBad, Row, as_row, check_columns, fail


def read_hub(
    dataset: str,
    subset: str | None,
    split: str,
    columns: Columns,
    known: Collection[str],
    on_bad: OnBad = fail,
) -> list[Row]:
    """Every row of one split; row 1 is the first; a bad row goes to `on_bad`.

    A class label is given as its number or, where the task's raw values (`known`) do not list the
    number, as its name. Raises ConfigError when the data set, the subset, the split or a column is
    not there.
    """
    import datasets

    folder = Path(dataset)
    where = f"data set {str(folder.absolute()) if folder.exists() else dataset}, split {split}"
    try:
        data = datasets.load_dataset(dataset, subset, split=split)
    except (FileNotFoundError, ValueError, OSError, datasets.exceptions.DatasetsError) as failure:
        raise ConfigError(
            f"{where}: could not be loaded ({type(failure).__name__}: {str(failure).strip()})"
        ) from None
    check_columns(columns, data.column_names, where)
    names = getattr(data.features[columns.label], "names", None)
    rows = []
    for number, values in enumerate(data.select_columns(columns.among(data.column_names)), start=1):
        label = values[columns.label]
        if names and isinstance(label, int) and str(label) not in known and 0 <= label < len(names):
            values = {**values, columns.label: names[label]}
        try:
            rows.append(as_row(values, columns, f"{where}: row {number}"))
        except ConfigError as problem:
            on_bad(str(problem))
    if not len(data):
        raise ConfigError(f"{where}: holds no rows")
    return rows
