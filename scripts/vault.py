"""`fedduet-vault`: a site's own command: serve its vault, look at its budget, and read the very
texts that left."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedduet.scripts.launching.environment import prepare

prepare()

from fedduet.clients.vault.answering.sent import everything_sent  # noqa: E402
from fedduet.clients.vault.budget.ledger import Ledger  # noqa: E402
from fedduet.clients.vault.config import SiteConfig  # noqa: E402
from fedduet.clients.vault.release.approvals import Approvals  # noqa: E402
from fedduet.clients.vault.release.policy import delta_for  # noqa: E402
from fedduet.clients.vault.release.privacy_unit import owners_of  # noqa: E402
from fedduet.clients.vault.release.releases import Releases  # noqa: E402
from fedduet.clients.vault.service import SiteFile, build_service, listen, read_site  # noqa: E402
from fedduet.conf.check import ConfigError  # noqa: E402
from fedduet.tasks.data.load import build_task, load_client  # noqa: E402
from fedduet.tasks.data.questions import QuestionsConfig, load_questions  # noqa: E402
from rich.console import (  # noqa: E402
    Console,
)
from rich.table import Table  # noqa: E402


def main(argv: Sequence[str]) -> int:
    """`fedduet-vault [serve|status|releases|approve] --config site.yaml`; 2 for input that cannot
    work."""
    parser = argparse.ArgumentParser(prog="fedduet-vault", description=__doc__)
    parser.add_argument(
        "command", nargs="?", default="serve", choices=("serve", "status", "releases", "approve")
    )
    parser.add_argument(
        "names",
        nargs="*",
        help="of approve: which releases; none: list what waits, with the very texts",
    )
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        help="the site's YAML file; docs/real-sites.md has one",
    )
    parser.add_argument(
        "--deny", action="store_true", help="of approve: deny these releases, for good"
    )
    parser.add_argument("--json", action="store_true", help="of status: for programs")
    given = parser.parse_intermixed_args(list(argv))
    try:
        site, config = read_site(given.config)
        if given.command == "serve":
            return serve(site, config)
        if given.command == "approve":
            return approve(config, given.names, given.deny)
        return status(config, given.json) if given.command == "status" else releases(config)
    except ConfigError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2


def serve(site: SiteFile, config: SiteConfig) -> int:
    """Until it is stopped."""
    import uvicorn
    from fedduet.clients.vault.dispatch import open_vault

    config.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    listening = listen(site)
    # what uvicorn raises again after it has stopped: lets `finally` run
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(
        f"vault of {config.client}: listening at {site.socket}; state in {config.folder}",
        flush=True,
    )
    server = uvicorn.Server(
        uvicorn.Config(build_service(open_vault(config)), log_level="warning", access_log=False)
    )
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        Path(site.socket).expanduser().unlink(missing_ok=True)
    return 0


def figures(config: SiteConfig) -> dict[str, Any]:
    """What the ledger holds, as plain values; `epsilon_spent` is null when something left without a
    guarantee."""
    if isinstance(config.task, QuestionsConfig):
        records = len(load_questions(config.task, config.client, config.seed).train)
    else:
        unit = config.policy.unit
        train = load_client(config.task, config.client, config.seed, unit == "user").train
        records = len(set(owners_of(train, unit)))
    delta = delta_for(config.policy, records)
    ledger = Ledger(
        config.folder / "ledger.jsonl",
        config.policy.epsilon_total,
        delta,
        True,
        unit=config.policy.unit,
    )
    spent, fixed = ledger.spent(), ledger.spent_if_fixed()
    return {
        "client": config.client,
        "records": records,
        "unit": config.policy.unit,
        "delta": delta,
        "epsilon_total": config.policy.epsilon_total,
        "epsilon_spent": spent if math.isfinite(spent) else None,
        "epsilon_if_fixed": fixed if math.isfinite(fixed) else None,
        "measurements": Releases(config.folder / "measurements").count(),
        "measurements_allowed": config.policy.maximum_measurements,
        "charges": [
            {
                "time": one.time,
                "run": one.run,
                "what": one.what,
                "released": one.released,
                "event": one.event.to_dict(),
                "rounds": one.rounds,
            }
            for one in ledger.entries()
        ],
    }


def status(config: SiteConfig, as_json: bool) -> int:
    """Budget spent and left, and every charge."""
    found = figures(config)
    if as_json:
        print(json.dumps(found))
        return 0
    console, table = Console(), Table(title=f"what left {found['client']}")
    for title in ("time", "run", "mechanism", "released", "noise multiplier"):
        table.add_column(title)
    for one in found["charges"]:
        table.add_row(
            one["time"],
            one["run"],
            one["what"],
            str(one["released"]),
            f"{one['event'].get('noise_multiplier', math.nan):.3f}",
        )
    console.print(table)
    spent = found["epsilon_spent"]
    said = (
        "no formal guarantee: something left unprotected"
        if spent is None
        else f"epsilon {spent:.3f} of {found['epsilon_total']:g} spent"
        f" ({found['epsilon_if_fixed']:.3f} had all plans been fixed beforehand)"
    )
    console.print(
        f"{said} for each {found['unit']} (delta {found['delta']:g}, {found['records']}"
        f" {found['unit']}s)",
        highlight=False,
    )
    console.print(
        f"{found['measurements']} of {found['measurements_allowed']} measurements made",
        highlight=False,
    )
    return 0


def releases(config: SiteConfig) -> int:
    """The very texts, scores and counts that left, and what was sent to an LLM, one JSON object a
    line."""
    for sent in everything_sent(config.folder):
        print(json.dumps({"kind": "Sent", "mechanism": "none", **sent}, ensure_ascii=False))
    for counted in Releases(config.folder / "measurements").all():
        print(json.dumps({"kind": type(counted).__name__, **_plain(counted)}))
    if isinstance(config.task, QuestionsConfig):
        return 0  # texts and scores never leave it
    task = build_task(config.task)
    kept = Releases(config.folder / "releases")
    approvals = Approvals(config.folder / "approvals")
    withheld = [approvals.answer(one.name)[0] for one in approvals.all() if not one.decided]
    for answer in kept.all():
        if answer in withheld:
            continue
        receipt = answer.receipt
        epsilon = receipt.epsilon if math.isfinite(receipt.epsilon) else None
        head = {"kind": type(answer).__name__, "mechanism": receipt.mechanism, "epsilon": epsilon}
        if hasattr(answer, "data"):
            for text, label in zip(answer.data.texts, answer.data.labels, strict=True):
                print(
                    json.dumps(
                        head | {"label": task.labels[label], "text": text}, ensure_ascii=False
                    )
                )
        else:
            print(json.dumps(head | {"scores": answer.scores}))
    return 0


def _plain(counted: Any) -> dict[str, Any]:
    """A count as plain JSON values: infinities, which JSON does not know, are null."""
    receipt = counted.receipt
    epsilon = receipt.epsilon if receipt and math.isfinite(receipt.epsilon) else None
    said = {"mechanism": receipt.mechanism if receipt else "none", "epsilon": epsilon}
    return said | {key: value for key, value in asdict(counted).items() if key != "receipt"}


def approve(config: SiteConfig, names: Sequence[str], deny: bool) -> int:
    """Decide on releases that wait; without names list them, each with the texts or scores that
    would leave."""
    approvals = Approvals(config.folder / "approvals")
    if names:
        for name in names:
            print(f"{'denied' if deny else 'approved'}: {approvals.decide(name, not deny).what}")
        return 0
    waiting = [one for one in approvals.all() if one.decided is None]
    for one in waiting:
        print(f"{one.name}: {one.what}")
        answer, arrays = approvals.answer(one.name)
        for text in getattr(getattr(answer, "data", None), "texts", ()):
            print(f"    {text}")
        for score in getattr(answer, "scores", ()):
            print(f"    {score}")
        for array, values in sorted(arrays.items()):
            print(f"    {array} {list(values.shape)}")
    print(
        f"{len(waiting)} waiting"
        + ("; fedduet-vault approve --config FILE NAME [--deny]" if waiting else "")
    )
    return 0


def command() -> None:
    """Console entry."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    command()
