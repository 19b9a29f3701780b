"""`fedduet attack`: attacks on what leaves a site, by whoever receives it. In a simulation only:
they need to know who was a member.

`members` asks who was in the training split, from released texts and from scores; `secrets` what
comes out word for word; `interface` what a server learns from messages that are free.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedduet.clients.vault.config import GeneratorConfig, read_sites
from fedduet.clients.vault.release.policy import delta_for
from fedduet.clients.vault.release.privacy_unit import check_unit, owners_of
from fedduet.clients.vault.synthesis import write_demonstrations
from fedduet.conf.check import ConfigError, check
from fedduet.lm.attacks.canaries import plant
from fedduet.lm.attacks.membership import (
    AUC,
    auc,
    longest_runs,
    mean_auc,
    nearest_scores,
    reference_scores,
)
from fedduet.lm.randomness import SecureNoise
from fedduet.scripts.attacking import interface
from fedduet.scripts.attacking.attack_scores import MECHANISMS, membership_by_scores
from fedduet.scripts.attacking.audit import plan, positive_numbers
from fedduet.tasks.builtin.standin import describe, resolve
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import build_task, client_names, load_client
from fedduet.tasks.task import Record, Split, Task
from fedduet.wire.messages import LabelledTexts
from rich.console import Console
from rich.table import Table

from fedduet import conf


@dataclass(frozen=True)
class Site:
    """Who is attacked: one client of a run's configuration, with the split of `seed`."""

    config: Mapping[str, Any]
    client: str
    seed: int
    task: Task
    split: Split
    generator: GeneratorConfig
    per_label: int

    @property
    def domain(self) -> str:
        return self.task.domains[self.client]

    def control(self, label: int) -> str:
        """The control code of a label in this site's domain."""
        return self.task.control(self.domain, label)

    def release(self, records: Sequence[Record], epsilon: float) -> LabelledTexts:
        """What FDKT would release of `records`, with noise for `epsilon` (inf: none). Raises
        ConfigError when nothing passes the rules."""
        privacy = read_sites(self.config).privacy
        owners = owners_of(records, privacy.policy.unit)
        units = len(set(owners))
        made = plan(self.generator, epsilon, delta_for(privacy.policy, units, privacy.delta), units)
        given = (self.generator, made.sigma, self.per_label, SecureNoise(), self.seed)
        released, _, _ = write_demonstrations(records, owners, self.task, self.domain, *given)
        if not len(released):
            raise ConfigError(
                "the generator wrote no text that passes the rules; there is nothing to attack"
            )
        return released


def open_site(overrides: Sequence[str], client: str | None, seed: int, per_label: int) -> Site:
    """The attacked site of a run with `overrides`; its first client by default. Raises
    ConfigError."""
    config = conf.compose([*overrides, f"seed={seed}"])
    task_config = check(TaskConfig, config["task"], "task")
    name = client or client_names(task_config)[0]
    if name not in client_names(task_config):
        raise ConfigError(
            f"--client: found {name!r}; allowed: {', '.join(client_names(task_config))}"
        )
    part = read_sites(config)
    check_unit(part.privacy.policy, task_config)
    return Site(
        config,
        name,
        seed,
        build_task(task_config),
        load_client(task_config, name, seed, part.privacy.policy.unit == "user"),
        part.generator,
        per_label,
    )


# --- Membership -----------------------------------------------------------------------------------


def membership_by_texts(site: Site, epsilon: float) -> dict[str, AUC]:
    """By attack: how well released texts tell the training split from the test split, which nothing
    was trained on."""
    released = site.release(site.split.train, epsilon)
    candidates = [*site.split.train, *site.split.test]
    texts, labels = [record.text for record in candidates], [record.label for record in candidates]
    shown = ([site.control(label) for label in released.labels], released.texts)
    asked = ([site.control(label) for label in labels], texts)
    by = {
        "loss against the public start": reference_scores(
            resolve(site.generator.path), shown, asked, site.generator.max_tokens, site.seed
        ),
        "nearest released text": nearest_scores(released.texts, released.labels, texts, labels),
    }
    members = len(site.split.train)
    return {name: auc(scores[:members], scores[members:]) for name, scores in by.items()}


def attack_members(
    sites: Sequence[Site], epsilons: Sequence[float], mechanisms: Sequence[str]
) -> list[dict[str, Any]]:
    """One row for each (mechanism, epsilon, attack), the mean over sites (seeds)."""
    rows = []
    for mechanism in mechanisms:
        for epsilon in [math.inf] if mechanism == "none" else epsilons:
            if mechanism in ("votes", "gaussian") and math.isinf(epsilon):
                continue  # sites refuse them without a finite epsilon
            found: dict[str, list[AUC]] = {}
            for site in sites:
                if mechanism == "texts":
                    by = membership_by_texts(site, epsilon)
                else:
                    by = membership_by_scores(
                        site.config, site.client, site.split, mechanism, epsilon
                    )
                for attack, one in by.items():
                    found.setdefault(attack, []).append(one)
            for attack, several in found.items():
                mean = mean_auc(several)
                row = {
                    "release": mechanism,
                    "epsilon": epsilon,
                    "attack": attack,
                    "auc": mean.value,
                    "low": mean.low,
                    "high": mean.high,
                }
                rows.append(row | {"members": mean.members, "others": mean.others})
    return rows


# --- Literal copies -------------------------------------------------------------------------------


def attack_secrets(
    sites: Sequence[Site], epsilons: Sequence[float], repeats: Sequence[int]
) -> list[dict[str, Any]]:
    """One row for each epsilon: secrets that came out by how often they were planted, over all
    sites (seeds), and shared runs of words.

    The runs are against the private records and, for comparison, against as many test records that
    the generator never saw.
    """
    rows = []
    for epsilon in epsilons:
        # of each secret: name out, number out
        out: dict[int, list[tuple[bool, bool]]] = {number: [] for number in repeats}
        runs: dict[str, list[int]] = {"private": [], "unseen": []}
        for site in sites:
            texts, secrets = _planted(site, repeats)
            records = [
                replace(record, text=text)
                for record, text in zip(site.split.train, texts, strict=True)
            ]
            released = site.release(records, epsilon).texts
            for secret in secrets:
                shown = [secret.shown_by(text) for text in released]
                out[secret.repeats].append(
                    (any(name for name, _ in shown), any(number for _, number in shown))
                )
            size = min(len(texts), len(site.split.test))
            runs["private"] += longest_runs(released, texts[:size])
            runs["unseen"] += longest_runs(
                released, [record.text for record in site.split.test[:size]]
            )
        planted = {
            str(number): {
                "planted": len(found),
                "names": sum(name for name, _ in found),
                "numbers": sum(digits for _, digits in found),
            }
            for number, found in out.items()
        }
        spread = {name: _spread(lengths) for name, lengths in runs.items()}
        rows.append(
            {"epsilon": epsilon, "texts": len(runs["private"]), "secrets": planted, "runs": spread}
        )
    return rows


def _planted(site: Site, repeats: Sequence[int]) -> tuple[list[str], list[Any]]:
    try:
        return plant([record.text for record in site.split.train], repeats, site.seed)
    except ValueError as problem:
        raise ConfigError(
            f"--repeats: {problem}; task.rows_per_client says how many records a client has"
        ) from None


def _spread(lengths: Sequence[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    return {
        "median": ordered[len(ordered) // 2],
        "95 %": ordered[int(0.95 * (len(ordered) - 1))],
        "longest": ordered[-1],
    }


# --- The command ----------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """`fedduet attack members|secrets [--client NAME] [--epsilons 1,8,inf] [--seeds N] [--out FILE]
    OVERRIDES...`, or `fedduet attack interface` (scripts/attacking/interface.py)"""
    if argv and argv[0] == "interface":
        return interface.main(argv[1:])
    parser = argparse.ArgumentParser(prog="fedduet attack", description=__doc__)
    parser.add_argument("kind", choices=("members", "secrets", "interface"))
    parser.add_argument(
        "overrides", nargs="*", help="as for a run: task=world generator.epochs=40 ..."
    )
    parser.add_argument("--client", help="who is attacked; default: the first client")
    parser.add_argument("--epsilons", help="default: 1,8,inf for members, 8,inf for secrets")
    parser.add_argument(
        "--releases", default="texts," + ",".join(MECHANISMS), help="members: attacked releases"
    )
    parser.add_argument(
        "--repeats", default="1,10,100", help="secrets: in how many records one is planted"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="seeds 0, 1, ...: other records, training and samples each",
    )
    parser.add_argument("--per-label", type=int, default=100, help="texts released of each label")
    parser.add_argument("--out", type=Path, help="JSON file; default: runs/attack-KIND.json")
    given = parser.parse_intermixed_args(list(argv))
    began, console = time.monotonic(), Console()
    epsilons = positive_numbers(
        given.epsilons or ("1,8,inf" if given.kind == "members" else "8,inf"), "--epsilons"
    )
    if given.seeds < 1 or given.per_label < 1:
        raise ConfigError(
            f"--seeds, --per-label: found {given.seeds}, {given.per_label}; allowed: at least 1"
        )
    sites = [
        open_site(given.overrides, given.client, seed, given.per_label)
        for seed in range(given.seeds)
    ]
    if given.kind == "members":
        releases = given.releases.split(",")
        if unknown := sorted(set(releases) - {"texts", *MECHANISMS}):
            raise ConfigError(
                f"--releases: found {', '.join(unknown)}; allowed: texts, {', '.join(MECHANISMS)}"
            )
        rows = attack_members(sites, epsilons, releases)
        table, note = _members_table(rows), "AUC: 0.5 is guessing"
    else:
        rows = attack_secrets(sites, epsilons, _whole_numbers(given.repeats))
        table = _secrets_table(rows)
        note = (
            "planted: names, numbers that came out; run: words that a text shares with a record"
            " (median, 95 %, longest)"
        )
    seconds = round(time.monotonic() - began)
    first, model = sites[0], describe(sites[0].generator.path)
    table.title = (
        f"attack on {given.kind} of {first.client}: {len(first.split.train)} records, {given.seeds}"
        f" seeds, generator {model}"
    )
    table.caption = f"{note}; {seconds} s"
    console.print(table)
    out = given.out or Path("runs") / f"attack-{given.kind}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "attack": given.kind,
        "client": first.client,
        "generator": model,
        "seeds": given.seeds,
        "overrides": given.overrides,
    }
    written = json.dumps(about | {"seconds": seconds, "rows": rows}, indent=1).replace(
        ": Infinity", ': "inf"'
    )
    out.write_text(written + "\n", encoding="utf-8")
    console.print(f"written to {out}")
    return 0


def _whole_numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--repeats: found {text!r}; allowed: whole numbers above 0 with commas")
    return sorted({int(part) for part in parts})


def _members_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("release", "epsilon", "attack", "AUC [95 %]", "members", "others")
    for row in rows:
        area = f"{row['auc']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        table.add_row(
            row["release"],
            f"{row['epsilon']:g}",
            row["attack"],
            area,
            str(row["members"]),
            str(row["others"]),
        )
    return table


def _secrets_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("epsilon", "texts")
    for number in rows[0]["secrets"]:
        table.add_column(f"planted {number}x")
    for name in ("private", "unseen"):
        table.add_column(f"run, {name}")
    for row in rows:
        secrets = [
            f"{one['names']}, {one['numbers']} of {one['planted']}"
            for one in row["secrets"].values()
        ]
        runs = [", ".join(map(str, spread.values())) for spread in row["runs"].values()]
        table.add_row(f"{row['epsilon']:g}", str(row["texts"]), *secrets, *runs)
    return table
