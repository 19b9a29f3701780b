"""`fedduet audit`: an empirical lower bound on the epsilon of FDKT's release, beside the accountant's upper bound.

The site's own mechanism runs (sampler, clipping, noise, as configured) on canaries, each in or out by a coin. In a simulation only: the
auditor sees what no server sees.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

import conf
from clients.vault.config import GeneratorConfig, site_settings
from clients.vault.policy import delta_for
from clients.vault.synthesis import write_demonstrations
from conf.check import ConfigError, check
from lm.accounting import Event, compose, noise_multiplier_for
from lm.audit import Audit, DiracCanaries, GradientWatcher, audit
from lm.batch import encode_document
from lm.dpsgd import planned_steps, prepare_generator, train_generator
from lm.embed import hashed_embeddings
from lm.load import load_causal_lm, load_tokenizer
from lm.per_example import loss_batch
from lm.randomness import SecureNoise, derive, numpy_generator
from tasks.config import TaskConfig
from tasks.load import build_task, client_names, load_client
from tasks.standin import resolve
from tasks.task import Record, Task

KINDS = {
    "worst": "white box, worst case: every canary has a coordinate of the gradient to itself",
    "natural": "white box, the site's own records as canaries, every noisy gradient seen",
    "release": "black box, the site's own records as canaries, only the released texts seen",
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


def plan(config: GeneratorConfig, epsilon: float, delta: float, records: int) -> Plan:
    """The noise that a site with `records` records and an empty ledger would plan for `epsilon`."""
    steps, rate = planned_steps(config, records)
    sigma = noise_multiplier_for(epsilon, delta, rate, steps)
    return Plan(config, sigma, rate, steps, compose([Event.poisson_gaussian(sigma, rate, steps)], delta), delta)


def audit_worst(config: GeneratorConfig, epsilon: float, delta: float, canaries: int, seed: int) -> tuple[Plan, Audit]:
    """Dirac canaries, half of them in."""
    path, included = resolve(config.path), _coins(canaries, seed)
    tokenizer = load_tokenizer(path, generates=True)
    model = prepare_generator(load_causal_lm(path, tokenizer=tokenizer), config, derive(seed, "generator"))
    texts = [f"canary {number}" for number in range(canaries)]
    rows = [encode_document(tokenizer, "", text, config.max_tokens) for text in texts]
    inside = [text for text, was in zip(texts, included, strict=True) if was]
    made = plan(config, epsilon, delta, len(inside))
    watch = DiracCanaries(model, rows, config.clip)
    given = ([""] * len(inside), inside, config, made.sigma, SecureNoise())
    train_generator(model, tokenizer, *given, phase="audit, worst case", watch=watch, engine=watch.engine)
    return made, audit(watch.scores, included, delta)


def audit_natural(
    config: GeneratorConfig, epsilon: float, delta: float, records: Sequence[Record], task: Task, domain: str, seed: int
) -> tuple[Plan, Audit]:
    """The site's records, half of them in; an auditor who knows them all and sees every step."""
    path, included = resolve(config.path), _coins(len(records), seed)
    tokenizer = load_tokenizer(path, generates=True)
    model = prepare_generator(load_causal_lm(path, tokenizer=tokenizer), config, derive(seed, "generator"))
    controls = [task.control(domain, record.label) for record in records]
    rows = [encode_document(tokenizer, control, r.text, config.max_tokens) for control, r in zip(controls, records, strict=True)]
    inside = [number for number, was in enumerate(included) if was]
    made = plan(config, epsilon, delta, len(inside))
    batch, expected = loss_batch(rows, tokenizer.pad_token_id, not config.mask_control_code), made.rate * len(inside)
    watch = GradientWatcher(model, batch, config.clip, made.sigma * config.clip, made.rate, expected, every=max(1, made.steps // 12))
    given = ([controls[i] for i in inside], [records[i].text for i in inside], config, made.sigma, SecureNoise())
    train_generator(model, tokenizer, *given, phase="audit, natural", watch=watch)
    return made, audit(watch.scores, included, delta)


def audit_release(
    config: GeneratorConfig, epsilon: float, delta: float, records: Sequence[Record], task: Task, domain: str, per_label: int, seed: int
) -> tuple[Plan, Audit]:
    """The site's records, half of them in; scored by the highest similarity (hashed words) to a released text of their label."""
    included = _coins(len(records), seed)
    inside = [record for record, was in zip(records, included, strict=True) if was]
    made = plan(config, epsilon, delta, len(inside))
    released, _, _ = write_demonstrations(inside, task, domain, config, made.sigma, per_label, SecureNoise(), seed)
    if not len(released):
        raise ConfigError("the generator wrote no text that passes the rules; there is nothing to audit")
    table, own = hashed_embeddings(released.texts), hashed_embeddings([record.text for record in records])
    similar = own @ table.T
    labels = np.array(released.labels)
    scores = [float(row[labels == record.label].max(initial=-1.0)) for row, record in zip(similar, records, strict=True)]
    return made, audit(scores, included, delta)


def _coins(count: int, seed: int) -> np.ndarray:
    return numpy_generator(seed, "audit coins").random(count) < 0.5


def main(argv: Sequence[str]) -> int:
    """`fedduet audit [--client NAME] [--canaries N] [--kinds worst,natural,release] OVERRIDES...`"""
    parser = argparse.ArgumentParser(prog="fedduet audit", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as for a run: task=world privacy.epsilon=8 generator.epochs=5 ...")
    parser.add_argument("--client", help="whose records; default: the first client")
    parser.add_argument("--canaries", type=int, default=1000, help="of the worst case, at most; natural ones are all records of the client")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which audits, of " + ", ".join(KINDS))
    given = parser.parse_args(list(argv))
    kinds = given.kinds.split(",")
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ConfigError(f"--kinds: found {', '.join(unknown)}; allowed: {', '.join(KINDS)}")
    if given.canaries < 32:
        raise ConfigError(f"--canaries: found {given.canaries}; allowed: at least 32 (fewer cannot show anything)")
    config = conf.compose(given.overrides)
    task_config, seed = check(TaskConfig, config["task"], "task"), int(config["seed"])
    _, generator, privacy = site_settings(config)
    client = given.client or client_names(task_config)[0]
    if client not in client_names(task_config):
        raise ConfigError(f"--client: found {client!r}; allowed: {', '.join(client_names(task_config))}")
    task, split = build_task(task_config), load_client(task_config, client, seed)
    records, domain = [*split.train, *split.validation, *split.test], task.domains[client]
    delta = delta_for(privacy.policy, max(len(records), given.canaries), privacy.delta)
    console, table = Console(), Table(title=f"audit of {client}, epsilon {privacy.epsilon:g} asked, delta {delta:g}")
    for title in ("what the auditor sees", "canaries", "guesses", "right", "epsilon, at least (95 %)", "epsilon, at most (accountant)"):
        table.add_column(title, justify="left" if title.startswith("what") else "right")
    refuted = False
    for kind in kinds:
        asked = (generator, privacy.epsilon, delta)
        if kind == "worst":
            made, found = audit_worst(*asked, given.canaries, seed)
        elif kind == "natural":
            made, found = audit_natural(*asked, records, task, domain, seed)
        else:
            made, found = audit_release(*asked, records, task, domain, 200, seed)
        refuted |= found.epsilon > made.epsilon
        table.add_row(KINDS[kind], str(found.canaries), str(found.guesses), str(found.right), f"{found.epsilon:.2f}", f"{made.epsilon:.2f}")
    console.print(table)
    if refuted:
        console.print("[red]a lower bound is above the claim: the mechanism that ran is not the one that was accounted for[/]")
    return int(refuted)
