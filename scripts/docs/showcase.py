"""`make screenshots`: runs the built-in world by each method, and a sweep, and puts the reports and
pictures of them into docs/."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fedduet.scripts.docs.browser import NoBrowser, chromium, opened
from fedduet.scripts.reporting.page import main as report
from fedduet.scripts.sweeping.report import main as sweep_report

DOCS = Path(__file__).parents[2] / "docs"
RUNS = {  # name: overrides
    "fdkt": ["strategy=fdkt", "federation=inprocess", "seed=0"],
    "crosslm": ["strategy=crosslm", "federation=inprocess", "privacy.feedback=votes", "seed=0"],
    "gboost": ["strategy=gboost", "federation=inprocess", "seed=0"],
}
SWEEP = [
    *("-m", "strategy=fdkt", "federation=inprocess", "privacy.epsilon=1,2,4,8", "seed=0,1,2"),
    *(
        "strategy.augment.per_label=100",
        "strategy.baselines={dp_only: true, zero_shot: true, fedavg: false, pooled: false}",
    ),
]
# of the made-up world
ASKED = {
    "gboost": [
        "start with 20 . then a red . then a lime . how many ?",
        "--client",
        "bakery",
        "--keep",
    ]
}
VIEWS = (("desktop", "light"), ("desktop", "dark"), ("phone", "light"))
MOST_PICTURE, MOST_PAGE = 300_000, 500_000  # bytes


def main(argv: Sequence[str]) -> int:
    """A run that is finished already is not repeated. 1 when a run fails, 2 without a browser."""
    parser = argparse.ArgumentParser(
        prog="python -m fedduet.scripts.docs.showcase", description=__doc__
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--only", choices=[*RUNS, "sweep"], nargs="+", default=[*RUNS, "sweep"])
    given = parser.parse_args(list(argv))
    for name in given.only:
        folder = given.runs / f"showcase-{name}"
        if name == "sweep":
            if done := subprocess.run(
                [sys.executable, "-m", "fedduet.scripts.run", *SWEEP, f"hydra.sweep.dir={folder}"]
            ).returncode:
                return done
            sweep_report([str(folder), "--out", str(DOCS / "reports" / "sweep.html")])
            continue
        if not (folder / "summary.json").is_file():
            command = [
                sys.executable,
                "-m",
                "fedduet.scripts.run",
                *RUNS[name],
                f"run.folder={folder}",
            ]
            if done := subprocess.run(command).returncode:
                return done
            if name in ASKED and (
                done := subprocess.run(
                    [sys.executable, "-m", "fedduet.scripts.run", "ask", str(folder), *ASKED[name]]
                ).returncode
            ):
                return done
        report([str(folder), "--out", str(DOCS / "reports" / f"{name}.html")])
    try:
        shoot(given.only)
    except NoBrowser as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    return 0


def shoot(names: Sequence[str]) -> None:
    """Pictures of the reports in docs/, each as a window shows it first. Raises NoBrowser,
    ValueError for a file that is too large."""
    (DOCS / "pictures").mkdir(exist_ok=True)
    with chromium() as browser:
        for name in names:
            page_file = DOCS / "reports" / f"{name}.html"
            files = [page_file]
            for size, scheme in VIEWS:
                files.append(DOCS / "pictures" / f"report-{name}-{size}-{scheme}.png")
                with opened(browser, page_file, size, scheme) as (page, _):
                    page.screenshot(path=files[-1])
                print(files[-1])
            for file in files:
                most = MOST_PAGE if file.suffix == ".html" else MOST_PICTURE
                if file.stat().st_size > most:
                    raise ValueError(
                        f"{file} has {file.stat().st_size} bytes; at most {most} belong into the"
                        " repository"
                    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
