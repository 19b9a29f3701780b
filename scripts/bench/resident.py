"""One message to a site in deployment: a courier asking the vault that stays, against a process
that loads everything for the message.

Flower starts a new process for every message in both; its polling comes on top of both and is not
in these figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from fedduet.scripts.bench.paired import Figure, ratio, take_turns
from fedduet.scripts.deploy.demo import configured, write_data
from fedduet.scripts.deploy.federation import BIN, SITES, Processes, site_file

COURIER = (
    "import fedduet.clients.app, sys; from fedduet.clients.courier import ask_remote; from"
    " fedduet.wire.messages import {kind}; "
)
COURIER += "print(type(ask_remote(sys.argv[1], {kind}(*sys.argv[2:]))[0]).__name__)"
STOCK = (
    "import sys; from pathlib import Path; from fedduet.clients.vault.service import read_site;"
    " from fedduet.clients.vault.dispatch import ask, open_vault; "
)
STOCK += (
    "from fedduet.wire.messages import {kind};"
    " print(type(ask(open_vault(read_site(Path(sys.argv[1]))[1]),"
    " {kind}(*sys.argv[2:]))[0]).__name__)"
)


def tell(code: str, kind: str, *arguments: str) -> None:
    """Run a courier's process to its end. Raises RuntimeError for another answer than the one that
    was asked for."""
    done = subprocess.run(
        [sys.executable, "-c", code.format(kind=kind), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.stdout.split()[-1:] != [
        {"Evaluate": "Evaluated", "Learn": "Learned", "Introduce": "Introduced"}[kind]
    ]:
        raise RuntimeError(f"{kind} was answered: {done.stdout[-300:]}{done.stderr[-300:]}")


def measure(turns: int, small: bool) -> list[Figure]:
    """Seconds of an introduction (the floor: a process and a message) and of an evaluation of the
    site's SLM, either way."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes, place = Processes(folder / "logs", folder / "flwr"), folder / "vault.sock"
        config = configured(
            folder, "run", write_data(folder / "data"), ["slm.max_steps=20", "task.test_rows=100"]
        )
        for number, site in enumerate(["resident", "stock"]):
            (folder / site).mkdir(mode=0o700)
            on_progress = site_file(
                config,
                SITES[number],
                folder / site,
                place if site == "resident" else folder / "other.sock",
            )
            (folder / site / "site.yaml").write_text(
                yaml.safe_dump(json.loads(json.dumps(on_progress)))
            )
        try:
            processes.start(
                "vault",
                [str(BIN / "fedduet-vault"), "--config", str(folder / "resident" / "site.yaml")],
            )
            processes.wait(place.exists, "the vault", 90)
            url, site = f"unix://{place}", str(folder / "stock" / "site.yaml")
            tell(COURIER, "Learn", url, "l", "run", "local")
            tell(STOCK, "Learn", site, "l", "run", "local")
            count = iter(range(10**6))
            seconds = take_turns(
                {
                    "floor": lambda: tell(COURIER, "Introduce", url, "i", "run"),
                    "resident": lambda: tell(
                        COURIER, "Evaluate", url, f"e{next(count)}", "run", "local"
                    ),
                    "stock": lambda: tell(
                        STOCK, "Evaluate", site, f"e{next(count)}", "run", "local"
                    ),
                },
                turns,
            )
        finally:
            processes.stop_all()
    value, spread = ratio(seconds, "stock", "resident")
    beyond, _ = ratio(seconds, "resident", "floor")
    medians = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
    detail = (
        f"{spread}; {medians['stock']:.1f} s against {medians['resident']:.1f} s, of which"
        f" {medians['floor']:.1f} s any message"
    )
    return [
        Figure(
            "resident",
            "evaluation message, loaded each time / resident vault",
            value,
            "x",
            "",
            detail,
        ),
        Figure("resident", "evaluation message, resident vault / any message", beyond, "x"),
    ]
