"""`fedduet audit`: empirical lower bounds on the epsilon of FDKT's texts and CrossLM's scores,
beside the accountant's upper bound.

The site's own mechanism runs (sampler, clipping, noise, as configured) on canaries, each in or out
by a coin. In a simulation only: the auditor sees what no server sees.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fedduet.clients.vault.config import GeneratorConfig, read_sites
from fedduet.clients.vault.release.policy import delta_for
from fedduet.clients.vault.release.privacy_unit import check_unit, owners_of
from fedduet.clients.vault.synthesis import write_demonstrations
from fedduet.conf.check import ConfigError, check
from fedduet.lm.attacks.membership import nearest_scores
from fedduet.lm.attacks.one_run_audit import (
    Audit,
    DiracCanaries,
    GradientWatcher,
    audit,
    audit_apart,
)
from fedduet.lm.dp.accounting import Event, compose, noise_multiplier_for
from fedduet.lm.dp.clipped_sums import loss_batch
from fedduet.lm.dp.dpsgd import planned_steps, prepare_generator, train_generator
from fedduet.lm.models.batch import encode_document
from fedduet.lm.models.load import load_causal_lm, load_tokenizer
from fedduet.lm.randomness import SecureNoise, derive, numpy_generator
from fedduet.scripts.attacking.audit_prediction import KINDS as PREDICTIONS
from fedduet.scripts.attacking.audit_prediction import audit_prediction
from fedduet.scripts.attacking.audit_scores import KINDS as SCORES
from fedduet.scripts.attacking.audit_scores import audit_scores
from fedduet.tasks.builtin.standin import resolve
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import build_task, client_names, load_client
from fedduet.tasks.task import Record, Task
from rich.console import Console
from rich.table import Table

from fedduet import conf

KINDS = {
    "worst": "white box, worst case: every canary has a coordinate of the gradient to itself",
    "natural": "white box, the site's own records as canaries, every noisy gradient seen",
    "release": "black box, the site's own records as canaries, only the released texts seen",
    **SCORES,
    **PREDICTIONS,
}


@dataclass(frozen=True)
class Plan:
    """The mechanism under audit. `epsilon`: what the accountant says of it at `delta`."""

    config: GeneratorConfig
    sigma: float
    rate: float
    steps: int
    epsilon: float
    delta: float


def plan(config: GeneratorConfig, epsilon: float, delta: float, units: int) -> Plan:
    """The noise that a site with `units` units and an empty ledger would plan for `epsilon`; none
    for an infinite one."""
    steps, rate = planned_steps(config, units)
    sigma = noise_multiplier_for(epsilon, delta, rate, steps)
    event = Event.poisson_gaussian(sigma, rate, steps) if sigma > 0 else Event.none()
    return Plan(config, sigma, rate, steps, compose([event], delta), delta)


def audit_worst(
    config: GeneratorConfig,
    epsilon: float,
    delta: float,
    canaries: int,
    seed: int,
    units: int,
    each: int = 1,
) -> tuple[Plan, Audit]:
    """Dirac canaries, half of them in, by the mechanism of a site with `units` units: its sample
    rate and its number of steps.

    A canary is a unit of privacy, with `each` rows: 1 is a record, more are a user's.
    """
    path, included = resolve(config.path), _coins(canaries, seed)
    tokenizer = load_tokenizer(path, generates=True)
    model = prepare_generator(
        load_causal_lm(path, tokenizer=tokenizer), config, derive(seed, "generator")
    )
    texts = [f"canary {number} {row}" for number in range(canaries) for row in range(each)]
    owners = [number for number in range(canaries) for _ in range(each)]
    rows = [encode_document(tokenizer, "", text, config.max_tokens) for text in texts]
    inside = [(text, owner) for text, owner in zip(texts, owners, strict=True) if included[owner]]
    count = int(included.sum())
    config = config.model_copy(
        update={"logical_batch": max(1, round(planned_steps(config, units)[1] * count))}
    )
    made = plan(config, epsilon, delta, count)
    watch = DiracCanaries(
        model, rows, config.clip, made.sigma, made.rate, made.rate * count, owners
    )
    given = (
        [""] * len(inside),
        [text for text, _ in inside],
        config,
        made.sigma,
        SecureNoise(),
        [owner for _, owner in inside],
    )
    train_generator(
        model, tokenizer, *given, phase="audit, worst case", watch=watch, engine=watch.engine
    )
    return made, audit_apart(
        watch.scores,
        included,
        delta,
        lambda sigma: Event.poisson_gaussian(sigma, made.rate, made.steps),
    )


def audit_natural(
    config: GeneratorConfig,
    epsilon: float,
    delta: float,
    records: Sequence[Record],
    task: Task,
    domain: str,
    seed: int,
) -> tuple[Plan, Audit]:
    """The site's records, half of them in; an auditor who knows them all and sees every step."""
    path, included = resolve(config.path), _coins(len(records), seed)
    tokenizer = load_tokenizer(path, generates=True)
    model = prepare_generator(
        load_causal_lm(path, tokenizer=tokenizer), config, derive(seed, "generator")
    )
    controls = [task.control(domain, record.label) for record in records]
    rows = [
        encode_document(tokenizer, control, r.text, config.max_tokens)
        for control, r in zip(controls, records, strict=True)
    ]
    inside = [number for number, was in enumerate(included) if was]
    made = plan(config, epsilon, delta, len(inside))
    batch, expected = (
        loss_batch(rows, tokenizer.pad_token_id, not config.mask_control_code),
        made.rate * len(inside),
    )
    watch = GradientWatcher(
        model,
        batch,
        config.clip,
        made.sigma * config.clip,
        made.rate,
        expected,
        every=max(1, made.steps // 12),
    )
    given = (
        [controls[i] for i in inside],
        [records[i].text for i in inside],
        config,
        made.sigma,
        SecureNoise(),
    )
    train_generator(model, tokenizer, *given, phase="audit, natural", watch=watch)
    return made, audit(watch.scores, included, delta)


def audit_release(
    config: GeneratorConfig,
    epsilon: float,
    delta: float,
    records: Sequence[Record],
    task: Task,
    domain: str,
    per_label: int,
    seed: int,
) -> tuple[Plan, Audit]:
    """The site's records, half of them in; scored by the highest similarity (hashed words) to a
    released text of their label."""
    included = _coins(len(records), seed)
    inside = [record for record, was in zip(records, included, strict=True) if was]
    made = plan(config, epsilon, delta, len(inside))
    released, _, _ = write_demonstrations(
        inside, range(len(inside)), task, domain, config, made.sigma, per_label, SecureNoise(), seed
    )
    if not len(released):
        raise ConfigError(
            "the generator wrote no text that passes the rules; there is nothing to audit"
        )
    scores = nearest_scores(
        released.texts,
        released.labels,
        [record.text for record in records],
        [record.label for record in records],
    )
    return made, audit(scores, included, delta)


def _coins(count: int, seed: int) -> np.ndarray:
    return numpy_generator(seed, "audit coins").random(count) < 0.5


# --- The command ----------------------------------------------------------------------------------

COLUMNS = (
    "what the auditor sees",
    "claimed",
    "at least",
    "by the curve",
    "right of guesses",
    "canaries",
    "s",
)


def main(argv: Sequence[str]) -> int:
    """`fedduet audit [--client NAME] [--canaries N] [--kinds ...] [--epsilons 1,3,8,inf] [--out
    FILE] OVERRIDES...`"""
    parser = argparse.ArgumentParser(prog="fedduet audit", description=__doc__)
    parser.add_argument(
        "overrides",
        nargs="*",
        help="as for a run: task=world privacy.epsilon=8 generator.epochs=5 ...",
    )
    parser.add_argument("--client", help="whose records; default: the first client")
    parser.add_argument(
        "--canaries",
        type=int,
        default=1000,
        help="of worst cases; natural ones are all records of the client",
    )
    parser.add_argument(
        "--kinds",
        help="which audits, of "
        + ", ".join(KINDS)
        + "; default: all that the unit of privacy allows",
    )
    parser.add_argument(
        "--epsilons",
        help="claims to audit, e.g. 1,3,8,inf; default: privacy.epsilon of the configuration",
    )
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    given = parser.parse_intermixed_args(list(argv))
    kinds = given.kinds.split(",") if given.kinds else list(KINDS)
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ConfigError(f"--kinds: found {', '.join(unknown)}; allowed: {', '.join(KINDS)}")
    if given.canaries < 32:
        raise ConfigError(
            f"--canaries: found {given.canaries}; allowed: at least 32 (fewer cannot show anything)"
        )
    config = conf.compose(given.overrides)
    part = read_sites(config)
    task_config, seed = check(TaskConfig, config["task"], "task"), part.seed
    generator, privacy = part.generator, part.privacy
    client = given.client or client_names(task_config)[0]
    if client not in client_names(task_config):
        raise ConfigError(
            f"--client: found {client!r}; allowed: {', '.join(client_names(task_config))}"
        )
    by_user = privacy.policy.unit == "user"
    task, split = build_task(task_config), load_client(task_config, client, seed, by_user)
    records, domain = [*split.train, *split.validation, *split.test], task.domains[client]
    units, each = len(records), 1
    if by_user:
        check_unit(privacy.policy, task_config)
        if given.kinds and {"natural", "release"} & set(kinds):
            raise ConfigError(
                "--kinds: natural and release take single records as canaries, and users are the"
                " unit; allowed: worst, votes, gaussian, private_prediction"
            )
        kinds = [kind for kind in kinds if kind not in ("natural", "release")]
        units, each = 1 + max(owners_of(split.train, "user")), generator.records_per_user
    delta = delta_for(privacy.policy, units, privacy.delta)
    began, rows, console = time.monotonic(), [], Console()
    epsilons = (
        positive_numbers(given.epsilons, "--epsilons") if given.epsilons else [privacy.epsilon]
    )
    for kind, epsilon in itertools.product(kinds, epsilons):
        if kind in SCORES | PREDICTIONS and math.isinf(epsilon):
            continue  # refused, or, unclipped, no claim
        since, asked = time.monotonic(), (generator, epsilon, delta)
        with console.status(f"{KINDS[kind]}; epsilon {epsilon:g}"):
            if kind in PREDICTIONS:
                claimed, found = audit_prediction(
                    *asked, given.canaries, seed, units if by_user else len(split.train)
                )
            elif kind in SCORES:
                claimed, found = audit_scores(
                    kind, epsilon, delta, given.canaries, seed, len(task.labels), each
                )
            elif kind == "worst":
                made, found = audit_worst(
                    *asked, given.canaries, seed, units if by_user else len(split.train), each
                )
            elif kind == "natural":
                made, found = audit_natural(*asked, records, task, domain, seed)
            else:
                made, found = audit_release(*asked, records, task, domain, 200, seed)
        claimed = claimed if kind in SCORES | PREDICTIONS else made.epsilon
        refuted = max(found.epsilon, found.by_curve or 0.0) > claimed
        rows.append(
            {
                "kind": kind,
                "claimed": claimed,
                "refuted": refuted,
                **asdict(found),
                "seconds": time.monotonic() - since,
            }
        )
    title = (
        f"audit of {client}: epsilon for each {privacy.policy.unit} at delta {delta:g}, lower"
        " bounds with 95 % confidence"
    )
    console.print(_table(rows, title, f"{time.monotonic() - began:.0f} s"))
    if given.out:
        written = json.dumps({"client": client, "delta": delta, "rows": rows}, indent=1).replace(
            ": Infinity", ': "inf"'
        )
        given.out.write_text(written + "\n", encoding="utf-8")
    if refuted := any(row["refuted"] for row in rows):
        console.print(
            "[red]a lower bound is above the claim: the mechanism that ran is not the one that was"
            " accounted for[/]"
        )
    return int(refuted)


def positive_numbers(text: str, option: str) -> list[float]:
    """Numbers above 0, or inf, separated by commas. Raises ConfigError naming `option`."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(number > 0 for number in found):
        raise ConfigError(
            f"{option}: found {text!r}; allowed: numbers above 0, or inf, with commas"
        )
    return found


def _table(rows: Sequence[Mapping[str, Any]], title: str, caption: str) -> Table:
    table = Table(title=title, caption=caption)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right")
    for row in rows:
        curve = "" if row["by_curve"] is None else f"{row['by_curve']:.2f}"
        counts = (
            f"{row['right']} of {row['guesses']}",
            str(row["canaries"]),
            f"{row['seconds']:.0f}",
        )
        table.add_row(
            KINDS[row["kind"]], f"{row['claimed']:.2f}", f"{row['epsilon']:.2f}", curve, *counts
        )
    return table
