"""How often an oracle classifier agrees with the labels that generated texts carry:
`python -m fedduet.scripts.bench.oracle RUN ...`.

The oracle (TF-IDF over words and word pairs, logistic regression) is trained on all labelled
training rows of the run's own domains, many times what the clients have; it measures and chooses
nothing. Its own test accuracy bounds what agreement can mean.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def read(file: Path, clients: list[str], columns: dict[str, str]) -> tuple[list[str], list[str]]:
    """Texts and raw labels of the clients' rows."""
    csv.field_size_limit(10**9)
    with (gzip.open if file.suffix == ".gz" else open)(
        file, "rt", encoding="utf-8", newline=""
    ) as lines:
        rows = [row for row in csv.DictReader(lines) if row[columns["client_column"]] in clients]
    return [row[columns["text_column"]] for row in rows], [
        row[columns["label_column"]] for row in rows
    ]


def main(argv: list[str] | None = None) -> int:
    """Print agreement by artefact and phase, over all sites."""
    parser = argparse.ArgumentParser(
        prog="python -m fedduet.scripts.bench.oracle", description=__doc__
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of one task")
    arguments = parser.parse_args(argv)
    task = yaml.safe_load((arguments.runs[0] / "config.yaml").read_text())["task"]
    clients, raw = list(task["clients"]), list(task["labels"])
    root = Path(task["root"] or ".")
    oracle = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    )
    oracle.fit(*read(root / task["path"], clients, task))
    texts, labels = read(root / task["test_path"], clients, task)
    print(
        f"oracle: {np.mean(oracle.predict(texts) == np.array(labels)):.3f} right on {len(texts)}"
        " test texts"
    )
    agreed: dict[str, list[bool]] = defaultdict(list)
    for run in arguments.runs:
        for name in ("demonstrations", "task_data"):
            rows = [
                json.loads(line)
                for line in (run / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            ]
            if rows:
                found = oracle.predict([row["text"] for row in rows])
                for row, label in zip(rows, found, strict=True):
                    agreed[f"{name}, {row['phase']}"].append(label == str(raw[row["label"]]))
    print("| texts | number | agreement with the intended label |\n|---|---|---|")
    for name, values in agreed.items():
        print(f"| {name} | {len(values)} | {np.mean(values):.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
