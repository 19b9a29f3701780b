"""`report.html`: one run, or several of one setting, as a page that needs no network and no script;
only what left the sites is in it."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fedduet.conf.check import ConfigError
from fedduet.scripts.reporting import answer, charts, data_card, metrics
from fedduet.scripts.reporting.answer import interval
from fedduet.scripts.reporting.flow import flow
from fedduet.scripts.reporting.html import document, opened, picture, rows_of, table
from fedduet.scripts.reporting.search import searches
from fedduet.scripts.reporting.table import read_summaries
from fedduet.scripts.reporting.texts import label_names, samples, scores
from fedduet.strategies.run.run_folder import write_atomically
from fedduet.strategies.run.summary import ordered, told

MOST_TOGETHER = 10  # methods in one picture [O]
COMMAND = "command.txt"  # how a person asked for the run


def write_page(folder: Path) -> Path:
    """The page of one run, in its folder. Raises ConfigError when the run has no summary."""
    return _write(folder / "report.html", page([folder]))


def main(argv: Sequence[str]) -> int:
    """`fedduet report RUN...`"""
    parser = argparse.ArgumentParser(prog="fedduet report", description=__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        help="folders of finished runs; several of one setting make one page",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where the page goes; default: report.html in the (first) run's folder",
    )
    given = parser.parse_args(list(argv))
    print(_write(given.out or given.runs[0] / "report.html", page(given.runs)))
    return 0


def _write(file: Path, text: str) -> Path:
    write_atomically(file, text)
    return file


def page(folders: Sequence[Path]) -> str:
    """The page of runs of one setting. Raises ConfigError for folders without a summary, and for
    runs of different settings."""
    summaries = read_summaries(folders)
    if len({(summary["strategy"], summary["task"]) for summary in summaries}) > 1:
        raise ConfigError(
            "runs of different strategies or tasks do not go on one page; give runs of one setting"
        )
    summary, folder = summaries[0], folders[0]
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    sections = [("accuracy", _title(summaries), _accuracy(summaries))]
    if len({_asked(one) for one in folders}) > 1:
        sections.append(
            ("epsilon", "Accuracy against epsilon", _against_epsilon(summaries, folders))
        )
    if summary.get("answers"):
        sections.append(("answers", "Answers, and what one question took", _answers(summaries)))
    beside = metrics.section(summaries, told(summary)["final"], label_names(config))
    sections.append(("metrics", "Beside accuracy", beside))
    sections.append(("data", "The data", data_card.section(folder)))
    sections.append(("flow", "How the run went", flow(folder, summary)))
    sections.append(("budget", "Privacy budget of each site", _budget(summary, config)))
    sections.append(("scores", "The sites' scores over rounds", scores(folder)))
    if summary.get("curve"):
        sections.append(("llm", "The LLM, round by round", _rounds(summaries)))
    if summary.get("answers"):
        sections.append(("search", "A search, step by step", searches(folder)))
    sections.append(("texts", "Samples of texts", samples(folder, label_names(config))))
    sections.append(("trouble", "Failures and warnings", _trouble(folders, summaries)))
    sections.append(("again", "Configuration, command and versions", _again(folder, summaries)))
    title = f"FedDuet: {summary['strategy']} on {summary['task']}"
    return document(title, [section for section in sections if section[2]], _headline(summaries))


def _title(summaries: Sequence[Mapping[str, Any]]) -> str:
    name = metrics.said(summaries[0])
    return f"{name[0].upper()}{name[1:]} on the sites' own tests"


# -- The parts -------------------------------------------------------------------------------------


def _headline(summaries: Sequence[Mapping[str, Any]]) -> str:
    summary, said = summaries[0], answer.sentence(summaries)
    runs = f"{len(summaries)} runs, " if len(summaries) > 1 else ""
    basis = (
        f"{answer.beside(summaries)} {runs}{summary['clients']} sites; differences are the method"
        " minus the other, paired by seed, with 95 % intervals over seeds (one seed has none)."
    )
    llm = summary["llm"].get("description") or summary["llm"].get("path", "")
    stand_in = (
        " A stand-in is no large model: figures show that the machinery works."
        if "stand-in" in llm
        else ""
    )
    glance = "".join(
        f"<li><span>{escape(what)}</span><b>{escape(figure)}</b><span>{escape(note)}</span></li>"
        for what, figure, note in answer.tiles(summaries)
    )
    return (
        f'<p class="question">{escape(told(summary)["question"])}</p><h1>{escape(said)}</h1>'
        f'<ul class="tiles">{glance}</ul>'
        f"<p>{escape(basis.strip())} LLM: {escape(llm)}.{stand_in}</p>"
    )


def _accuracy(summaries: Sequence[Mapping[str, Any]]) -> str:
    models = dict.fromkeys(model for summary in summaries for model in summary["accuracy"])
    spec = told(summaries[0])
    best, base = spec["final"], spec["base"]
    sites = list(summaries[0]["accuracy_per_client"])
    against = list(dict.fromkeys(filter(None, (answer.best_rival(summaries), base))))
    rows, lines = (
        {},
        [
            [
                "method",
                "mean [95 %]",
                *(f"minus {one}, points" for one in against),
                *sites,
                "what it is",
            ]
        ],
    )
    for model in ordered(models, summaries[0]):
        values = [
            one[model]
            for summary in summaries
            for one in summary["accuracy_per_client"].values()
            if model in one
        ]
        mean, half = interval(values)
        rows[model] = ((mean, mean - half, mean + half), values)
        by_site = [
            [
                s["accuracy_per_client"][site][model]
                for s in summaries
                if model in s["accuracy_per_client"].get(site, {})
            ]
            for site in sites
        ]
        spread = (
            "" if math.isnan(half) else f" [{max(0, mean - half):.3f}, {min(1, mean + half):.3f}]"
        )
        apart = [
            str(answer.difference(summaries, model, one) or "") if model != one else ""
            for one in against
        ]
        cells = [f"{np.mean(values):.3f}" if values else "-" for values in by_site]
        what = spec["columns"].get(model, "")
        lines.append([model, f"{mean:.3f}{spread}", *apart, *cells, what])
    said = f"test {metrics.said(summaries[0])}, mean with 95 % interval; a dot for each site"
    drawn = "".join(
        (f"<h3>{escape(title)}</h3>" if title else "")
        + charts.intervals({name: rows[name] for name in names}, best, said)
        for title, names in _grouped(list(rows), spec).items()
    )
    return drawn + table(lines, "accuracy by method and site")


def _grouped(models: Sequence[str], spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """Methods as they are drawn: all together where they are few; else the strategy's own, then
    the baselines for which nothing private leaves a site, then the rest."""
    if len(models) <= MOST_TOGETHER:
        return {"": list(models)}
    rivals, own = set(spec["rivals"]), spec["final"]
    groups = {
        "The method and its variants": [m for m in models if m not in rivals],
        "One answer, or the best of several": [
            m for m in models if m in rivals and not m.endswith("majority")
        ],
        "A vote over several": [m for m in models if m in rivals and m.endswith("majority")],
    }
    groups["The method and its variants"].sort(key=lambda name: name != own)
    return {title: names for title, names in groups.items() if names}


def _answers(summaries: Sequence[Mapping[str, Any]]) -> str:
    """G-Boost: what a question took on the mean, by method."""
    columns = {
        "accuracy": ".3f",
        "llm_tokens": ".0f",
        "slm_tokens": ".0f",
        "reward_calls": ".1f",
        "requests": ".1f",
        "seconds": ".3f",
    }
    lines = [
        [
            "method",
            *(
                name.replace("llm", "LLM").replace("slm", "SLM").replace("_", " ")
                for name in columns
            ),
        ]
    ]
    for method in summaries[0]["answers"]:
        found = [
            summary["answers"][method] for summary in summaries if method in summary["answers"]
        ]
        lines.append(
            [
                method,
                *(
                    format(float(np.mean([one[name] for one in found])), form)
                    for name, form in columns.items()
                ),
            ]
        )
    return (
        f"{table(lines, 'cost of an answer by method')}<p>Tokens are drawn ones; prompts are not"
        " counted.</p>"
    )


def _against_epsilon(summaries: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> str:
    asked = sorted({_asked(folder) for folder in folders})
    series = {}
    for model in (one for one in told(summaries[0])["columns"] if one in summaries[0]["accuracy"]):
        means = [
            [
                s["accuracy"][model]
                for s, f in zip(summaries, folders, strict=True)
                if _asked(f) == one and model in s["accuracy"]
            ]
            for one in asked
        ]
        series[model] = [float(np.mean(values)) if values else None for values in means]
    return picture(
        charts.lines(series, [f"{one:g}" for one in asked], "accuracy by epsilon"),
        "accuracy by epsilon",
    )


def _rounds(summaries: Sequence[Mapping[str, Any]]) -> str:
    names = {
        "oracle_agreement": "oracle agrees",
        "reward": "mean reward",
        "llm_accuracy": "LLM's own accuracy",
    }
    rounds = range(min(len(summary["curve"]) for summary in summaries))
    series: dict[str, list[float | None]] = {}
    for key, name in names.items():
        values = [[s["curve"][number].get(key) for s in summaries] for number in rounds]
        if any(value is not None for row in values for value in row):
            series[name] = [
                float(np.mean(known)) if (known := [v for v in row if v is not None]) else None
                for row in values
            ]
    labels = [f"round {number}" for number in rounds]
    drawn = picture(charts.lines(series, labels, "what the LLM wrote, round by round"), "rounds")
    summary = summaries[0]
    lines = [["LLM", "accuracy on the sites' tests", "perplexity of neutral text", "other tasks"]]
    for when in dict.fromkeys((*summary["llm_accuracy"], *summary["llm_general"])):
        accuracy = [s["llm_accuracy"][when] for s in summaries if when in s["llm_accuracy"]]
        general = [s["llm_general"][when] for s in summaries if when in s["llm_general"]]
        figures = [
            f"{np.mean([one[key] for one in general]):.3f}" if general else "-"
            for key in ("perplexity", "accuracy")
        ]
        lines.append([when, f"{np.mean(accuracy):.3f}" if accuracy else "-", *figures])
    return (
        f"{drawn}{table(lines, 'the LLM before and after')}<p>Scores of the sites:"
        f" {escape(summary['feedback'])}.</p>"
    )


def _budget(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if not summary["epsilon"]:
        seen = (
            " Questions and steps went to the LLM that the sites' policies allow."
            if summary.get("answers")
            else ""
        )
        return f"<p>Nothing that depends on private text was released under a guarantee.{seen}</p>"
    limit = config["privacy"]["policy"].get("epsilon_total")
    lines = [
        [
            "site",
            "epsilon of its ledger",
            "its limit",
            "delta",
            "mechanism",
            "noise multiplier",
            "steps",
            "n",
            "released",
        ]
    ]
    for site, epsilon in summary["epsilon"].items():
        receipt = summary["receipts"][site]
        on_progress = "no formal guarantee" if math.isinf(epsilon) else f"{epsilon:.2f}"
        noise = f"{receipt['noise_multiplier']:.3f}" if receipt["noise_multiplier"] else "-"
        most, steps = "-" if limit is None else f"{limit:g}", receipt.get("steps")
        rest = [
            receipt["mechanism"],
            noise,
            str(steps or "-"),
            f"{receipt['records']} {receipt.get('unit', 'record')}s",
            str(receipt["released"]),
        ]
        lines.append([site, on_progress, most, f"{summary['delta'][site]:.1e}", *rest])
    last = (
        "<p>Mechanism, noise and what follows are those of the last release; the ledger composes"
        " all of them.</p>"
    )
    return table(lines, "privacy budget by site") + last


def _trouble(folders: Sequence[Path], summaries: Sequence[Mapping[str, Any]]) -> str:
    failures = [
        f"{one['phase']} {one['client']}: {one['reason']}"
        for s in summaries
        for one in s["failures"]
    ]
    warnings = [
        entry["message"]
        for folder in folders
        for entry in rows_of(folder / "events.jsonl")
        if entry["event"] == "warning"
    ]
    said = "".join(f"<li>{escape(line)}</li>" for line in dict.fromkeys((*failures, *warnings)))
    return f"<ul>{said}</ul>" if said else ""


def _again(folder: Path, summaries: Sequence[Mapping[str, Any]]) -> str:
    command = folder / COMMAND
    asked = command.read_text(encoding="utf-8").strip() if command.is_file() else ""
    asked = re.sub(r"(run\.folder=)\S*?([^/\s']+)'?(?=\s|$)", r"\1runs/\2", asked)
    said = (
        f"<p>Asked for by</p><pre>{escape(asked)}</pre>"
        if asked
        else "<p>Its command was not kept; the settings are below.</p>"
    )
    try:
        ours = f"fedduet {version('fedduet')}, "
    except PackageNotFoundError:
        ours = ""
    versions = ours + ", ".join(f"{name} {one}" for name, one in summaries[0]["versions"].items())
    seeds = ", ".join(str(s["seed"]) for s in summaries)
    seconds = summaries[0]["seconds"]["total"]
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    # where a machine keeps its runs is nobody's business
    place = yaml.safe_load(config)["run"]["folder"]
    config = config.replace(str(place), f"runs/{Path(place).name}") if place else config
    everything = opened(
        "all settings, as the run resolved them", f'<pre tabindex="0">{escape(config)}</pre>'
    )
    return f"{said}<p>Seed: {seeds}. {seconds:.0f} s. {escape(versions)}.</p>{everything}"


# -- Pieces ----------------------------------------------------------------------------------------


def _asked(folder: Path) -> float:
    return float(
        yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["privacy"]["epsilon"]
    )
