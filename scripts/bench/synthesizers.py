"""Private prediction, DP-SGD and the public prompt alone on one table of labelled texts:
`python -m fedduet.scripts.bench.synthesizers TABLE --model DIR ...` prints JSON lines.

For every number of private records, epsilon and seed each arm writes the same number of texts for
every label. Measured: agreement of an oracle (TF-IDF, logistic regression, trained on all training
rows) with the labels that texts carry; a MAUVE-like distance between texts and held-out rows;
accuracy on held-out rows of a receiver that learns the texts alone, and of one that has 8 rows of
its own for each label besides; seconds. Private prediction needs torch, transformers, numpy and
scikit-learn only; DP-SGD needs the project's other packages, and says so where they are missing.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedduet.lm.decoding.llama import LlamaStepper
from fedduet.lm.dp.contexts import deal_contexts
from fedduet.lm.dp.predicted_texts import Predicting, predict_texts, public_examples
from fedduet.lm.dp.zcdp import rho_for
from fedduet.lm.randomness import SeededNoise, numpy_generator
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

OWN = 8  # rows of a label that a receiver has of its own
ARMS = ("public", "clipped", "unclipped", "argmax", "dpsgd")


@dataclass(frozen=True)
class Table:
    """Texts with label numbers: those that sites and the oracle draw from, and held-out ones."""

    names: tuple[str, ...]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]


@dataclass(frozen=True)
class Written:
    """What an arm wrote, and what it says of itself."""

    texts: list[str]
    labels: list[int]
    said: dict[str, Any]


def read_table(file: Path, given: argparse.Namespace) -> Table:
    """The rows of `given.labels` (default: all) that `--where column=value` keeps. A column "split"
    says which rows are held out; without one every fifth is."""
    opened = gzip.open if file.suffix == ".gz" else open
    csv.field_size_limit(10**9)
    with opened(file, "rt", encoding="utf-8", newline="") as lines:
        if ".jsonl" in file.name:
            rows = [json.loads(line) for line in lines]
        else:
            rows = list(csv.DictReader(lines))
    for condition in given.where:
        column, _, value = condition.partition("=")
        rows = [row for row in rows if str(row[column]) == value]
    names = given.labels.split(",") if given.labels else sorted({row[given.label] for row in rows})
    rows = [row for row in rows if str(row[given.label]) in {str(name) for name in names}]
    numpy_generator(0, "table").shuffle(rows)
    pairs = [
        (row[given.text], [str(n) for n in names].index(str(row[given.label]))) for row in rows
    ]
    held = [
        row["split"] == "test" if "split" in row else number % 5 == 0
        for number, row in enumerate(rows)
    ]
    words = given.words.split(",") if given.words else [str(n).replace("_", " ") for n in names]
    return Table(
        tuple(words),
        [pair for pair, out in zip(pairs, held, strict=True) if not out],
        [pair for pair, out in zip(pairs, held, strict=True) if out],
    )


# --- Arms -----------------------------------------------------------------------------------------


class Writers:
    """The arms over one public LM."""

    def __init__(self, table: Table, given: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.table, self.given = table, given
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(given.model)
        self.model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
        self.run = LlamaStepper(self.model.to(self.device).eval())
        named = self.model.generation_config.eos_token_id
        self.ends = frozenset(named if isinstance(named, list) else [named]) | {
            self.tokenizer.eos_token_id
        }
        self.ends -= {None}

    def write(
        self, arm: str, private: Sequence[tuple[str, int]], epsilon: float, seed: int
    ) -> Written:
        """Raises ImportError where an arm's packages are missing."""
        if arm == "dpsgd":
            return self._trained(private, epsilon, seed)
        given = self.given
        delta = given.delta or min(1e-5, 1 / (10 * max(1, len(private))))
        asked = Predicting(
            rho=math.inf if arm == "unclipped" else rho_for(epsilon, delta),
            units=1 if arm == "public" else len(private),  # nobody is read
            labels=len(self.table.names),
            per_label=given.per_label,
            rule="argmax" if arm == "argmax" else "clipped",
            contexts=given.contexts,
            batches=given.batches,
            tokens=given.tokens,
            temperature=given.temperature,
            top_k=given.top_k,
            prompt_tokens=given.prompt_tokens,
            rows=given.rows,
        )
        headings = [
            given.heading.format(label=name, noun=given.noun, domain=given.domain)
            for name in self.table.names
        ]
        common = (self.run, self.tokenizer, headings)
        examples = public_examples(
            *common, given.examples, asked, self.ends, SeededNoise(seed, "examples")
        )
        texts, labels = [text for text, _ in private], [label for _, label in private]
        dealt = deal_contexts(texts, labels, None, b"%d" % seed, asked.batches)
        contexts = {} if arm == "public" else dealt
        found = predict_texts(*common, contexts, asked, self.ends, SeededNoise(seed, arm), examples)
        said = {"B": asked.divisor, "clip": round(getattr(asked.made_rule(), "clip", 0.0), 3)}
        rows = [(text, label) for label, own in enumerate(found) for text, _ in own if text]
        return Written([text for text, _ in rows], [label for _, label in rows], said)

    def _trained(self, private: Sequence[tuple[str, int]], epsilon: float, seed: int) -> Written:
        import copy

        from fedduet.lm.decoding.sample import sample_texts
        from fedduet.lm.dp.accounting import noise_multiplier_for
        from fedduet.lm.dp.config import DPConfig
        from fedduet.lm.dp.dpsgd import planned_steps, prepare_generator, train_generator
        from fedduet.lm.models.load import merged

        given, names = self.given, self.table.names
        config = DPConfig(
            logical_batch=min(given.logical_batch, len(private)),
            steps=given.steps,
            learning_rate=given.learning_rate,
            max_tokens=given.prompt_tokens,
        )
        heads = [given.control.format(label=name, noun=given.noun) for name in names]
        delta = given.delta or min(1e-5, 1 / (10 * len(private)))
        steps, rate = planned_steps(config, len(private))
        sigma = noise_multiplier_for(epsilon, delta, rate, steps)
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = prepare_generator(copy.deepcopy(self.model), config, seed)
        train_generator(
            model,
            tokenizer,
            [heads[label] for _, label in private],
            [f" {text}" for text, _ in private],
            config,
            sigma,
            SeededNoise(seed, "dpsgd"),
        )
        labels = [label for label in range(len(names)) for _ in range(given.per_label)]
        samples = sample_texts(
            merged(model),
            tokenizer,
            [heads[label] for label in labels],
            2 * given.tokens,
            seed=seed,
        )
        texts = [sample.text.partition("\n")[0].strip() for sample in samples]
        said = {"sigma": round(sigma, 3), "steps": steps}
        kept = [(text, label) for text, label in zip(texts, labels, strict=True) if text]
        return Written([text for text, _ in kept], [label for _, label in kept], said)


# --- Measures -------------------------------------------------------------------------------------


def embedder(folder: str | None, train: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts -> rows of length 1: the mean hidden states of an encoder, or, without one, TF-IDF."""
    if folder is None:
        tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(train)
        return lambda texts: tfidf.transform(texts).toarray()
    from transformers import AutoModel, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                list(texts[start : start + 64]), padding=True, truncation=True, max_length=128,
                return_tensors="pt",
            ).to(device)  # fmt: skip
            mask = batch["attention_mask"][:, :, None]
            hidden = model(**batch).last_hidden_state
            means = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            rows.append(torch.nn.functional.normalize(means, dim=-1).cpu().numpy())
        return np.concatenate(rows)

    return embed


def mauve_like(first: np.ndarray, second: np.ndarray, seed: int) -> float:
    """Area under the divergence curve (Pillutla et al. 2021, eq. 2) of two sets of rows quantised
    by k-means, k a fifth of the smaller set and at least 2 [O]; 1 for equal sets. Depends on their
    sizes: compare arms of the same number of texts only."""
    most = min(len(first), len(second))
    first, second = (part[:most] for part in (first, second))
    clusters = KMeans(max(2, most // 5), n_init=3, random_state=seed).fit(
        np.vstack([first, second])
    )
    counts = [
        np.bincount(clusters.predict(part), minlength=clusters.n_clusters) + 0.5
        for part in (first, second)
    ]
    p, q = (count / count.sum() for count in counts)
    points = [(0.0, 1.0), (1.0, 0.0)]
    for share in np.linspace(0.01, 0.99, 99):
        mixed = share * p + (1 - share) * q
        points.append(
            tuple(math.exp(-5 * float((one * np.log(one / mixed)).sum())) for one in (q, p))
        )
    points.sort()
    x, y = np.array(points).T
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def measures(
    table: Table, written: Written, oracle: Any, embed: Any, own: Any, seed: int
) -> dict[str, float]:
    """All figures of one arm's texts."""
    tests, truth = [text for text, _ in table.test], np.array([label for _, label in table.test])
    if len(set(written.labels)) < 2:
        return {"agreement": 0.0}
    made, vectors = embed(written.texts), embed(tests)
    accuracy = {}
    for name, rows, labels in (
        ("receiver", made, written.labels),
        (
            "receiver_with_own",
            np.vstack([embed([text for text, _ in own]), made]),
            [*(label for _, label in own), *written.labels],
        ),
    ):
        head = LogisticRegression(C=10, max_iter=1000).fit(rows, labels)
        accuracy[name] = float((head.predict(vectors) == truth).mean())
    return {
        "agreement": float((oracle.predict(written.texts) == np.array(written.labels)).mean()),
        "mauve_like": mauve_like(vectors, made, seed),
        "distinct": len({*written.texts}) / len(written.texts),
        **accuracy,
    }


def rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each arm, number of records, epsilon and seed, as it is ready; before them the
    oracle's own accuracy and the receiver's with its own rows alone."""
    table = read_table(given.table, given)
    oracle = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    ).fit(*map(list, zip(*table.train, strict=True)))
    tests, truth = map(list, zip(*table.test, strict=True))
    embed = embedder(given.embedder, [text for text, _ in table.train])
    yield {"task": given.name, "oracle": float(oracle.score(tests, truth)), "test": len(tests)}
    writers = Writers(table, given)
    for seed in range(given.seeds):
        order = numpy_generator(seed, "sites").permutation(len(table.train))
        shuffled = [table.train[i] for i in order]
        own = [
            pair
            for label in range(len(table.names))
            for pair in [one for one in shuffled if one[1] == label][:OWN]
        ]
        rest = [pair for pair in shuffled if pair not in own]
        head = LogisticRegression(C=10, max_iter=1000).fit(
            embed([text for text, _ in own]), [label for _, label in own]
        )
        alone = float(head.score(embed(tests), truth))
        yield {"task": given.name, "seed": seed, "arm": "own rows", "receiver_with_own": alone}
        free: set[tuple[str, int]] = set()
        for n in (n for n in given.records if n <= len(rest)):
            for epsilon in given.epsilons:
                for arm in given.arms:
                    # these do not depend on epsilon, and the public prompt not on n either
                    key = (arm, n if arm == "unclipped" else 0)
                    if arm in ("public", "unclipped") and key in free:
                        continue
                    free.add(key)
                    yield one_row(writers, table, arm, rest[:n], epsilon, seed, oracle, embed, own)


def one_row(
    writers: Writers,
    table: Table,
    arm: str,
    private: Sequence[tuple[str, int]],
    epsilon: float,
    seed: int,
    oracle: Any,
    embed: Any,
    own: Any,
) -> dict[str, Any]:
    """The figures of one arm, or why there are none."""
    row = {
        "task": writers.given.name,
        "seed": seed,
        "arm": arm,
        "n": len(private),
        "epsilon": epsilon,
        "device": writers.device,
    }
    began = time.perf_counter()
    try:
        written = writers.write(arm, private, epsilon, seed)
    except ImportError as missing:
        return row | {"skipped": str(missing)}
    row |= {"seconds": round(time.perf_counter() - began, 1), "texts": len(written.texts)}
    figures = measures(table, written, oracle, embed, own, seed)
    shown = list(zip(written.labels, written.texts, strict=True))[
        :: max(1, len(written.texts) // 4)
    ]
    return (
        row | {k: round(v, 4) for k, v in figures.items()} | written.said | {"samples": shown[:4]}
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print rows as JSON lines."""
    parser = argparse.ArgumentParser(
        prog="python -m fedduet.scripts.bench.synthesizers", description=__doc__
    )
    numbers = {"type": lambda text: [float(part) for part in text.split(",")]}
    parser.add_argument("table", type=Path, help="csv, csv.gz, jsonl or jsonl.gz")
    parser.add_argument("--model", required=True, help="folder of a Llama")
    parser.add_argument("--embedder", help="folder of an encoder; default: TF-IDF")
    parser.add_argument("--name", default="task", help="of the rows")
    parser.add_argument("--text", default="text", help="column")
    parser.add_argument("--label", default="label", help="column")
    parser.add_argument("--labels", help="raw values, with commas; default: all")
    parser.add_argument("--words", help="how prompts word them, with commas")
    parser.add_argument("--where", action="append", default=[], help="column=value")
    parser.add_argument("--noun", default="message")
    parser.add_argument("--domain", default="customers")
    parser.add_argument("--heading", default="Examples of {noun}s ({domain}, {label}):")
    parser.add_argument("--control", default="A {noun} about {label}:", help="of DP-SGD")
    parser.add_argument("--arms", default=",".join(ARMS), type=lambda text: text.split(","))
    parser.add_argument("--records", default=[50, 100, 200, 500, 1000], **numbers)
    parser.add_argument("--epsilons", default=[1.0, 3.0, 8.0], **numbers)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--delta", type=float, help="default: min(1e-5, 1 / (10 n))")
    for name, default in (("per-label", 8), ("batches", 1), ("tokens", 32), ("top-k", 500),
                          ("examples", 3), ("prompt-tokens", 160), ("rows", 512)):  # fmt: skip
        parser.add_argument(f"--{name}", default=default, type=int)
    parser.add_argument("--contexts", type=int, help="B; default: n / (labels x batches)")
    parser.add_argument("--temperature", default=1.0, type=float)
    parser.add_argument("--steps", default=30, type=int, help="of DP-SGD")
    parser.add_argument("--logical-batch", default=64, type=int, help="of DP-SGD")
    parser.add_argument("--learning-rate", default=1e-3, type=float, help="of DP-SGD")
    given = parser.parse_args(argv)
    given.records = [int(n) for n in given.records]
    if unknown := {*given.arms} - {*ARMS}:
        parser.error(f"--arms: found {', '.join(sorted(unknown))}; allowed: {', '.join(ARMS)}")
    for row in rows(given):
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
