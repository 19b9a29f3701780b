"""`make deploy-demo`: a federation of real processes on one machine: SuperLink with TLS and node
keys, SuperNodes, vaults, two runs.

Everything is started by this script and stopped by process id. It ends with 0 only when both runs
completed, the same texts left the vaults as in a run in process, and a node with an unregistered
key and one without TLS were turned away.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedduet.scripts.launching.environment import prepare

# everywhere the same: sums of floats depend on the number of threads
os.environ["OMP_NUM_THREADS"] = "1"
prepare()

from fedduet.scripts.deploy.federation import SITES, Federation, Stopped  # noqa: E402
from fedduet.scripts.deploy.namespaces import Namespaces  # noqa: E402

from fedduet import conf  # noqa: E402

SMALL = [
    "strategy.baselines={dp_only: false, zero_shot: false, fedavg: false, pooled: false}",
    "strategy.demonstrations_per_label=8",
    "strategy.augment.per_label=24",
]
CROSSLM = [
    "strategy=crosslm",
    "strategy.rounds=1",
    "strategy.per_label=8",
    "strategy.llm_test_rows=50",
    "privacy.feedback=votes",
    "strategy.baselines={zero_shot: false, filtered: false, llm_unfiltered: false, "
    "llm_pooled: false, fedavg: false, pooled: false}",
]

NO_NAMESPACES = "all sites share the machine's network: namespaces need root and iproute2"


def write_data(folder: Path) -> dict[str, str]:
    """A private CSV for each site, from the built-in world."""
    from fedduet.tasks.builtin.world import LABELS, world_records

    files = {}
    for site in SITES:
        file = folder / f"{site}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["text", "label"])
            writer.writerows(
                [record.text, LABELS[record.label]]
                for record in world_records(site, 150, f"deploy/{site}")
            )
        files[site] = str(file)
    return files


def same_texts(one: Path, other: Path) -> bool:
    """Whether the same demonstrations left in both runs."""
    return sorted((one / "demonstrations.jsonl").read_text().splitlines()) == sorted(
        (other / "demonstrations.jsonl").read_text().splitlines()
    )


def configured(
    folder: Path, name: str, files: Mapping[str, str], overrides: Sequence[str]
) -> dict[str, Any]:
    """The configuration of a run over the sites' files."""
    source = [
        "task=files",
        f"task.path={{{', '.join(f'{site}: {file}' for site, file in files.items())}}}",
        "task.labels=[negative, positive]",
    ]
    source += [
        "task.partition=files",
        "task.rows_per_client=40",
        "task.name=reviews",
        "privacy.seeded_noise=true",
        "privacy.epsilon=4",
        f"run.folder={folder / name}",
    ]
    return conf.compose(
        [*source, *overrides, "federation=inprocess", "federation.gather_timeout=120"]
    )


def main() -> int:
    """0 when everything held; what did not is said."""
    from fedduet.scripts.launching.launch import launch

    folder = Path("runs/deploy-demo").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    files, began = write_data(folder / "data"), time.monotonic()
    fdkt = configured(folder, "fdkt", files, SMALL)
    other = configured(
        folder, "crosslm", files, [*CROSSLM, f"federation.state_folder={folder}/unused"]
    )
    print("the same run in process, to compare with", flush=True)
    alone = launch(configured(folder, "inprocess", files, SMALL))
    try:
        with contextlib.ExitStack() as stack:
            apart = stack.enter_context(Namespaces(SITES)) if Namespaces.available() else None
            print(
                (
                    "each site has a network of its own, with the SuperLink only"
                    if apart
                    else NO_NAMESPACES
                ),
                flush=True,
            )
            federation = stack.enter_context(Federation(folder, apart))
            federation.start(fdkt)
            federation.check_networks()
            print(
                f"{time.monotonic() - began:.0f} s: SuperLink, {len(SITES)} SuperNodes and"
                f" {len(SITES)} vaults are up",
                flush=True,
            )
            deployed = federation.run(fdkt, 300)
            print(
                f"{time.monotonic() - began:.0f} s: FDKT completed: {deployed['accuracy']}",
                flush=True,
            )
            if not same_texts(folder / "fdkt", folder / "inprocess"):
                raise Stopped("other texts left the vaults than in the run in process")
            if deployed["accuracy"] != alone["accuracy"]:
                raise Stopped(
                    f"accuracies differ from the run in process: {deployed['accuracy']},"
                    f" {alone['accuracy']}"
                )
            steered = federation.run(other, 300)
            print(
                f"{time.monotonic() - began:.0f} s: CrossLM completed: {steered['accuracy']}",
                flush=True,
            )
            trust = ["--root-certificates", f"{federation.keys}/ca.crt"]
            federation.turned_away("supernode-stranger", federation.supernode("stranger", trust))
            federation.turned_away(
                "supernode-plain", federation.supernode(SITES[0], ["--insecure"])
            )
            print(
                f"{time.monotonic() - began:.0f} s: an unregistered key and a node without TLS were"
                " turned away",
                flush=True,
            )
    except Stopped as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(
        f"deployed and in process gave the same texts and accuracies; logs and runs are in {folder}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
