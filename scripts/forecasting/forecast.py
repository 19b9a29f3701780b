"""`fedduet check OVERRIDES...`: checks a configuration without running it, and says what it will
take: epsilon, tokens, time, memory."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedduet.conf.check import ConfigError
from fedduet.conf.sections import FederationConfig
from fedduet.scripts.forecasting import pilot
from fedduet.scripts.forecasting.spend import Spend, spends
from fedduet.scripts.forecasting.work import Rows, Work, work
from fedduet.scripts.launching.preflight import preflight
from fedduet.scripts.launching.run_config import read_run
from fedduet.scripts.launching.words import check_words
from fedduet.tasks.builtin.standin import cache_folder
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import check_data
from rich.console import Console
from rich.table import Table

from fedduet import conf

FULL_BATCHES = 1.3  # memory of a run over that of its pilots, whose batches are not full [O]
RAY_START = 8.0  # seconds until Ray and its workers are up [O]
LLM_KINDS = ("augment", "augment_plain", "write")  # that draw tokens


@dataclass(frozen=True)
class Forecast:
    """Seconds of wall time, bytes of peak memory (all processes), LLM tokens, and the privacy
    budget by site.

    None: not estimated. `seconds_by_kind`: where the time goes, one process. `limit`: the most new
    tokens that the counts allow.
    """

    sites: Mapping[str, Spend]
    seconds: float | None = None
    # the same work as if nothing else ran on the machine, where `seconds` has its load
    processor_seconds: float | None = None
    memory: float | None = None
    gpu_memory: float = 0.0
    requests: float | None = None
    prompt_tokens: float | None = None
    new_tokens: float | None = None
    limit: float | None = None
    seconds_by_kind: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()


def forecast(config: Mapping[str, Any], calibrate: bool = True) -> Forecast:
    """What a run of `config` will take. Raises ConfigError for a configuration that cannot work.

    Time and memory come from pilots of the very models with the data of the simulated sites
    (scripts/forecasting/pilot.py), whose seconds grow linearly with counts: per kind of phase,
    seconds = a * calls + b * units.
    """
    run = read_run(config)
    preflight(run)
    chosen, task, federation = run.server.strategy, run.task, run.federation
    if not isinstance(task, TaskConfig):
        return Forecast(
            {},
            notes=(
                (
                    "Questions are answered within strategy.search's budgets; time and tokens are"
                    " not estimated."
                ),
            ),
        )
    by_user, batch = run.sites.privacy.policy.unit == "user", run.sites.generator.logical_batch
    loaded = check_data(task, run.seed, logical_batch=batch, by_user=by_user)
    rows = Rows(
        {name: sum(site.train.values()) for name, site in loaded.items()},
        {name: sum(site.test.values()) for name, site in loaded.items()},
        len(next(iter(loaded.values())).train),
        {
            name: site.users if by_user else sum(site.train.values())
            for name, site in loaded.items()
        },
    )
    sites = spends(run, rows.units, rows.labels)
    asked = work(config, rows)
    if asked is None:
        return Forecast(
            sites,
            notes=(f"Time, memory and tokens are not estimated for strategy {chosen.spec.name}.",),
        )
    requests = sum(asked[kind].units for kind in LLM_KINDS if kind in asked)
    asks = chosen.tuning.write if chosen.tuning else chosen.augment
    limit = float(requests * asks.max_new_tokens * getattr(asks, "max_rounds", 1))
    if run.server.llm.engine == "openai":
        note = (
            "The endpoint is not asked before the run, so time and memory are not estimated; new"
            " tokens are at most the limit."
        )
        return Forecast(sites, requests=requests, limit=limit, notes=(note,))
    if not calibrate:
        return Forecast(sites, requests=requests, limit=limit)
    return _scaled(config, rows, asked, sites, federation, limit)


def _scaled(
    config: Mapping[str, Any],
    rows: Rows,
    asked: Mapping[str, Work],
    sites: Mapping[str, Spend],
    federation: FederationConfig,
    limit: float,
) -> Forecast:
    sizes = max(rows.train.values()), max(rows.test.values())
    pilots = [pilot.shrunk(config, share, *sizes) for share in pilot.SIZES]
    found = pilot.measure(pilots, cache_folder())
    works = [work(one, _with_tests(rows, one)) for one in pilots]
    (_, small, large), (_, less, more) = found["runs"], works
    kinds = {kind: _line(kind, small, large, less, more, need) for kind, need in asked.items()}
    requests = prompt = new = 0.0
    for kind in LLM_KINDS:
        used = large["usage"].get(kind)
        if kind in asked and used and used["requests"]:
            # of requests as the engine counts them: a chat answer holds several texts
            factor = asked[kind].units / more[kind].units
            requests += factor * used["requests"]
            prompt += factor * used["prompt_tokens"]
            new += factor * used["new_tokens"]
    seconds, memory = (
        found["start"] + large["rest"] + sum(kinds.values()),
        FULL_BATCHES * found["memory"],
    )
    notes = ["Time and memory are from pilots on this machine under its load at that time."]
    if federation.kind == "simulation":
        workers = max(
            1, min(len(rows.train), int((os.cpu_count() or 1) / federation.cpus_per_client))
        )
        at_llm = sum(
            value
            for kind, value in kinds.items()
            if kind in (*LLM_KINDS, "curate", "tune_generator", "tune_task", "measure_llm")
        )
        seconds = found["start"] + RAY_START + at_llm + (sum(kinds.values()) - at_llm) / workers
        memory *= 1 + workers
        notes.append(
            f"On Ray: {workers} workers beside the server, each counted with the memory of the"
            " whole pilot."
        )
    gpu = FULL_BATCHES * found["gpu_memory"]
    alone = (large["rest"] + sum(kinds.values())) * found["busy"] + found["start"] * min(
        1.0, found["busy"]
    )
    return Forecast(
        sites, seconds, alone, memory, gpu, requests, prompt, new, limit, kinds, tuple(notes)
    )


def _with_tests(rows: Rows, config: Mapping[str, Any]) -> Rows:
    return Rows(
        rows.train,
        {name: min(count, config["task"]["test_rows"]) for name, count in rows.test.items()},
        rows.labels,
        rows.units,
    )


def _line(
    kind: str, small: Mapping[str, Any], large: Mapping[str, Any], less: Any, more: Any, need: Work
) -> float:
    """Seconds of `kind`, by the line through both pilots; through zero and the larger one where the
    line makes no sense.

    `measure_llm` inside a tuning is counted by its own kind's rate, so it is taken off the tuning's
    seconds first.
    """
    if kind not in large["seconds"]:
        return 0.0
    lower, upper = (one["seconds"].get(kind, 0.0) for one in (small, large))
    if kind == "tune_task":
        lower, upper = (
            max(0.0, s - one["seconds"].get("measure_llm", 0.0))
            for s, one in ((lower, small), (upper, large))
        )
    first, second = (
        float(run["tuned"].get(kind) or part[kind].units)
        for run, part in ((small, less), (large, more))
    )
    calls = more[kind].calls
    if kind == "measure_llm":  # two of these rows are in a tuning, and timed there
        first, second = first / 2, second / 2
    slope = (upper - lower) / (second - first) if second > first else 0.0
    fixed = (upper - slope * second) / max(calls, 1)
    if slope <= 0 or fixed < 0:
        slope, fixed = upper / max(second, 1e-9), 0.0
    return need.calls * fixed + need.units * slope


# -- The command -----------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """`fedduet check OVERRIDES...`: 0 for a configuration that works; 2, with a sentence, for one
    that does not."""
    if set(argv) & {"-h", "--help"}:
        print(f"{__doc__}\n\n  --quick   no pilots: neither time nor memory\n  --json    as JSON")
        return 0
    flags = {word for word in argv if word.startswith("--")}
    if flags - {"--quick", "--json"}:
        raise ConfigError(f"found {sorted(flags)[0]}; allowed: --quick, --json and overrides")
    overrides = [word for word in argv if not word.startswith("--")]
    check_words(overrides, ())
    config = conf.compose(overrides)
    if "--quick" not in flags:
        print("measuring small pilots of these models (once; kept in the cache)", file=sys.stderr)
    try:
        on_progress = forecast(config, calibrate="--quick" not in flags)
    except RuntimeError as problem:
        raise ConfigError(f"{problem}; --quick checks without pilots") from None
    if "--json" in flags:
        print(json.dumps(_plain(on_progress), indent=1))
    else:
        show(on_progress, config)
    return 0


def _plain(on_progress: Forecast) -> dict[str, Any]:
    values = {name: getattr(on_progress, name) for name in on_progress.__dataclass_fields__}
    return values | {"sites": {site: vars(spend) for site, spend in on_progress.sites.items()}}


def show(on_progress: Forecast, config: Mapping[str, Any], console: Console | None = None) -> None:
    """The forecast as tables."""
    console = console or Console()
    title = (
        f"{config['strategy']['name']} on {config['task']['name']}: this configuration works; a run"
        " will take"
    )
    table = Table(title=title, show_header=False)
    clock = "not estimated" if on_progress.seconds is None else _clock(on_progress.seconds)
    table.add_row("wall time", clock)
    if on_progress.processor_seconds is not None:
        table.add_row("processor time of one process", _clock(on_progress.processor_seconds))
    table.add_row(
        "peak memory",
        "not estimated" if on_progress.memory is None else f"{on_progress.memory / 2**20:,.0f} MiB",
    )
    if on_progress.gpu_memory:
        table.add_row("peak GPU memory", f"{on_progress.gpu_memory / 2**20:,.0f} MiB")
    if on_progress.requests is not None:
        drawn = (
            ""
            if on_progress.new_tokens is None
            else (
                f"about {on_progress.prompt_tokens:,.0f} prompt and {on_progress.new_tokens:,.0f}"
                " new; "
            )
        )
        table.add_row(
            "LLM tokens",
            f"{drawn}at most {on_progress.limit:,.0f} new, {on_progress.requests:,.0f} requests",
        )
    console.print(table)
    if on_progress.sites:
        budget = Table(title="privacy budget, exactly")
        for column in (
            "site",
            "epsilon of the run",
            "of the whole ledger then",
            "delta",
            "noise multiplier",
        ):
            budget.add_column(column, justify="left" if column == "site" else "right")
        for site, one in on_progress.sites.items():
            said = [
                f"{value:.4f}" if math.isfinite(value) else "no guarantee"
                for value in (one.epsilon, one.total)
            ]
            noise = f"{one.noise_multiplier:.4f}" if one.noise_multiplier else "-"
            budget.add_row(site, *said, f"{one.delta:.1e}", noise)
        console.print(budget)
    if on_progress.seconds_by_kind:
        slow = sorted(on_progress.seconds_by_kind.items(), key=lambda item: -item[1])
        console.print(
            "seconds by kind, one process: "
            + ", ".join(f"{kind} {value:.1f}" for kind, value in slow if value >= 0.05)
        )
    for note in on_progress.notes:
        console.print(note)


def _clock(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
