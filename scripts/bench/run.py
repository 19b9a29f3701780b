"""`fedduet-bench`: measures the heavy parts as ratios in one run, prints a table, writes JSON,
compares with an earlier file."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fedduet.scripts.launching.environment import prepare

prepare()

import torch  # noqa: E402  (threads are set before)
from fedduet.scripts.bench.paired import Figure  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

BENCHES = ("machine", "dp", "generate", "texts", "clients", "resident")


def main(argv: Sequence[str] | None = None) -> int:
    """0 when everything could be measured; an aim that was not reached is shown, not an error."""
    parser = argparse.ArgumentParser(prog="fedduet-bench", description=__doc__)
    parser.add_argument(
        "benches", nargs="*", metavar="BENCH", help=f"of {', '.join(BENCHES)}; all without"
    )
    parser.add_argument("--turns", type=int, default=3, help="how often each way is timed")
    parser.add_argument("--small", action="store_true", help="the smaller models only")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    parser.add_argument("--compare", type=Path, help="an earlier run's JSON, to print beside")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.benches if name not in BENCHES]:
        parser.error(f"no bench {unknown[0]!r}; allowed: {', '.join(BENCHES)}")
    if arguments.compare and not arguments.compare.is_file():
        parser.error(f"--compare: found no file {arguments.compare}")
    torch.set_num_threads(1)
    earlier = {}
    if arguments.compare:
        earlier = {
            (one["bench"], one["work"]): one["value"]
            for one in json.loads(arguments.compare.read_text())["figures"]
        }
    console, figures = Console(), []
    for name in arguments.benches or BENCHES:
        began = time.monotonic()
        with console.status(f"{name} ..."):
            found = importlib.import_module(f"fedduet.scripts.bench.{name}").measure(
                arguments.turns, arguments.small
            )
        figures += found
        console.print(table(f"{name} ({time.monotonic() - began:.0f} s)", found, earlier))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    arguments.out.write_text(
        json.dumps({"about": about, "figures": [asdict(figure) for figure in figures]}, indent=1)
    )
    console.print(f"written to {arguments.out}")
    return 0


def table(title: str, figures: Sequence[Figure], earlier: dict[tuple[str, str], float]) -> Table:
    """Value beside aim, and beside what it was."""
    shown = Table(title=title, title_justify="left")
    for column in ("work", "value", "aim", *(["earlier"] if earlier else []), "detail"):
        shown.add_column(column, justify="right" if column in ("value", "earlier") else "left")
    for figure in figures:
        reached = {True: "[green]", False: "[red]", None: ""}[figure.reached]
        value = f"{reached}{figure.value:.3g} {figure.unit}" + ("[/]" if reached else "")
        was = earlier.get((figure.bench, figure.work))
        shown.add_row(
            figure.work,
            value,
            figure.aim,
            *([f"{was:.3g}" if was is not None else "-"] if earlier else []),
            figure.detail,
        )
    return shown


def command() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    command()
