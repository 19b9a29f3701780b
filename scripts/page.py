"""`report.html`: one run, or several of one setting, as a page that needs no network and no script; only what left the sites is in it."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from conf.check import ConfigError
from lm.embed import hashed_embeddings
from scripts import charts
from scripts.report import read_summaries
from scripts.show import ORDER, interval
from strategies.run_folder import write_atomically
from strategies.summary import taught_by

STYLE = Path(__file__).with_name("page.css")
SAMPLES = 12  # texts of each kind on the page [O]
MEANING = {
    "local": "a site's own records alone",
    "dp_only": "own records and the site's own DP-synthetic texts, no LLM",
    "zero_shot": "own records and texts the LLM writes from the domain's name alone",
    "filtered": "own records and such texts, chosen and weighed by the sites' scores; the LLM stays as it came",
    "fedavg": "weights averaged over sites: no privacy guarantee",
    "fdkt": "own records and texts the LLM writes after DP demonstrations",
    "crosslm": "own records and texts of an LLM that the sites' scores steer",
    "pooled": "everybody's records together: an upper bound only a simulation has",
}


def write_page(folder: Path) -> Path:
    """The page of one run, in its folder. Raises ConfigError when the run has no summary."""
    return _write(folder / "report.html", _page([folder]))


def main(argv: Sequence[str]) -> int:
    """`fedduet report RUN...`"""
    parser = argparse.ArgumentParser(prog="fedduet report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs; several of one setting make one page")
    parser.add_argument("--out", type=Path, help="where the page goes; default: report.html in the (first) run's folder")
    given = parser.parse_args(list(argv))
    print(_write(given.out or given.runs[0] / "report.html", _page(given.runs)))
    return 0


def _write(file: Path, page: str) -> Path:
    write_atomically(file, page)
    return file


def _page(folders: Sequence[Path]) -> str:
    summaries = read_summaries(folders)
    if len({(summary["strategy"], summary["task"]) for summary in summaries}) > 1:
        raise ConfigError("runs of different strategies or tasks do not go on one page; give runs of one setting")
    summary, folder = summaries[0], folders[0]
    parts = [_headline(summaries), _accuracy(summaries)]
    if len({_asked(one) for one in folders}) > 1:
        parts.append(_against_epsilon(summaries, folders))
    if summary.get("curve"):
        parts.append(_rounds(summaries))
    if summary.get("answers"):
        parts.append(_answers(summaries))
    parts.append(_budget(summary))
    parts.append(_flow(folder, summary))
    parts.append(_samples(folder))
    parts.append(_small_print(folder, summaries))
    title = f"FedDuet: {summary['strategy']} on {summary['task']}"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
    body = f'<main><p class="over">{escape(title)}</p>{"".join(parts)}</main>'
    style = STYLE.read_text(encoding="utf-8")
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{style}</style></head><body>{body}</body></html>\n'


# -- The parts ------------------------------------------------------------------------------------------------------------


def _headline(summaries: Sequence[Mapping[str, Any]]) -> str:
    summary = summaries[0]
    model = taught_by(summary["strategy"])
    base = "local" if "local" in summary["accuracy"] else "slm"
    pairs = [100 * (one[model] - one[base]) for s in summaries for one in s["accuracy_per_client"].values() if {model, base} <= set(one)]
    privacy = _privacy(summaries)
    if not pairs:
        answer = (
            f"{model}: {np.mean([s['accuracy'][model] for s in summaries]):.3f} right, {privacy}"
            if model in summary["accuracy"]
            else privacy
        )
    else:
        mean, half = interval(pairs)
        spread = "" if math.isnan(half) else f" [{mean - half:.1f}, {mean + half:.1f}]"
        answer = f"Private SLMs {'gained' if mean >= 0 else 'lost'} {abs(mean):.1f} points{spread if mean >= 0 else ''} {privacy}"
    runs = f"{len(summaries)} runs, " if len(summaries) > 1 else ""
    basis = f"{runs}{summary['clients']} sites; against training on a site's own records alone; 95 % interval over pairs of site and run."
    llm = summary["llm"].get("description") or summary["llm"].get("path", "")
    stand_in = " A stand-in is no large model: figures show that the machinery works." if "stand-in" in llm else ""
    return f"<h1>{escape(answer)}</h1><p>{escape(basis)} LLM: {escape(llm)}.{stand_in}</p>"


def _privacy(summaries: Sequence[Mapping[str, Any]]) -> str:
    spent = [value for summary in summaries for value in summary["epsilon"].values()]
    if not spent:
        return "and nothing private was released"
    return "with no formal guarantee" if math.isinf(max(spent)) else f"at epsilon {max(spent):.2g}"


def _accuracy(summaries: Sequence[Mapping[str, Any]]) -> str:
    models = dict.fromkeys(model for summary in summaries for model in summary["accuracy"])
    rows = {}
    for model in sorted(models, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        values = [one[model] for summary in summaries for one in summary["accuracy_per_client"].values() if model in one]
        mean, half = interval(values)
        rows[model] = ((mean, mean - half, mean + half), values)
    best = taught_by(summaries[0]["strategy"])
    picture = charts.intervals(rows, best, "test accuracy, mean with 95 % interval; a dot for each site")
    sites = list(summaries[0]["accuracy_per_client"])
    table = [["method", *sites, "mean", "what it is"]]
    for model, ((mean, _, _), _) in rows.items():
        by_site = [
            [s["accuracy_per_client"][site][model] for s in summaries if model in s["accuracy_per_client"].get(site, {})] for site in sites
        ]
        table.append([model, *(f"{np.mean(values):.3f}" if values else "-" for values in by_site), f"{mean:.3f}", MEANING.get(model, "")])
    return f"<h2>Accuracy on the sites' own tests</h2>{picture}{_table(table)}"


def _answers(summaries: Sequence[Mapping[str, Any]]) -> str:
    """G-Boost: what a question took on the mean, by method."""
    columns = {"accuracy": ".3f", "llm_tokens": ".0f", "slm_tokens": ".0f", "reward_calls": ".1f", "requests": ".1f", "seconds": ".3f"}
    table = [["method", *(name.replace("llm", "LLM").replace("slm", "SLM").replace("_", " ") for name in columns)]]
    for method in summaries[0]["answers"]:
        found = [summary["answers"][method] for summary in summaries if method in summary["answers"]]
        table.append([method, *(format(float(np.mean([one[name] for one in found])), form) for name, form in columns.items())])
    return f"<h2>Answers, and what one question took</h2>{_table(table)}<p>Tokens are drawn ones; prompts are not counted.</p>"


def _against_epsilon(summaries: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> str:
    asked = sorted({_asked(folder) for folder in folders})
    models = [model for model in ORDER if model in summaries[0]["accuracy"]]
    series = {}
    for model in models:
        means = [
            [s["accuracy"][model] for s, f in zip(summaries, folders, strict=True) if _asked(f) == one and model in s["accuracy"]]
            for one in asked
        ]
        series[model] = [float(np.mean(values)) if values else None for values in means]
    return f"<h2>Accuracy against epsilon</h2>{charts.lines(series, [f'{one:g}' for one in asked], 'accuracy by epsilon')}"


def _rounds(summaries: Sequence[Mapping[str, Any]]) -> str:
    names = {"oracle_agreement": "oracle agrees", "reward": "mean reward", "llm_accuracy": "LLM's own accuracy"}
    rounds = range(min(len(summary["curve"]) for summary in summaries))
    series: dict[str, list[float | None]] = {}
    for key, name in names.items():
        values = [[s["curve"][number].get(key) for s in summaries] for number in rounds]
        if any(value is not None for row in values for value in row):
            series[name] = [
                float(np.mean([v for v in row if v is not None])) if any(v is not None for v in row) else None for row in values
            ]
    picture = charts.lines(series, [f"round {number}" for number in rounds], "what the LLM wrote, round by round")
    summary = summaries[0]
    table = [["LLM", "accuracy on the sites' tests", "perplexity of neutral text", "other tasks"]]
    for when in dict.fromkeys((*summary["llm_accuracy"], *summary["llm_general"])):
        accuracy = [s["llm_accuracy"][when] for s in summaries if when in s["llm_accuracy"]]
        general = [s["llm_general"][when] for s in summaries if when in s["llm_general"]]
        figures = [f"{np.mean([one[key] for one in general]):.3f}" if general else "-" for key in ("perplexity", "accuracy")]
        table.append([when, f"{np.mean(accuracy):.3f}" if accuracy else "-", *figures])
    return f"<h2>The LLM, round by round</h2>{picture}{_table(table)}<p>Scores of the sites: {escape(summary['feedback'])}.</p>"


def _budget(summary: Mapping[str, Any]) -> str:
    if not summary["epsilon"]:
        return "<h2>Privacy budget</h2><p>Nothing that depends on private text was released under a guarantee.</p>"
    table = [["site", "epsilon, everything its ledger holds", "delta", "mechanism", "noise multiplier", "records"]]
    for site, epsilon in summary["epsilon"].items():
        receipt = summary["receipts"][site]
        told = "no formal guarantee" if math.isinf(epsilon) else f"{epsilon:.2f}"
        noise = f"{receipt['noise_multiplier']:.3f}" if receipt["noise_multiplier"] else "-"
        table.append([site, told, f"{summary['delta'][site]:.1e}", receipt["mechanism"], noise, str(receipt["records"])])
    return f"<h2>Privacy budget</h2>{_table(table)}"


def _flow(folder: Path, summary: Mapping[str, Any]) -> str:
    starts: dict[str, float] = {}
    phases: list[tuple[str, str, float, float]] = []
    moved: dict[str, list[int]] = {}
    before = last = 0.0  # seconds of earlier starts of the run, whose clocks began again
    for entry in _rows(folder / "events.jsonl"):
        if entry["event"] == "start":
            before, last = before + last, 0.0
        last = entry["elapsed"]
        match entry["event"]:
            case "phase_start":
                starts[entry["phase"]] = before + entry["elapsed"]
            case "phase_end":
                phases.append((entry["phase"], entry["side"], starts.get(entry["phase"], 0.0), entry["seconds"]))
            case "sent" | "answered":
                moved.setdefault(entry["phase"], [0, 0])[entry["event"] == "answered"] += entry["bytes"]
    notes = {phase: f"↓{_bytes(down)} ↑{_bytes(up)}" for phase, (down, up) in moved.items()}
    wire = f"{_bytes(summary['wire']['up_bytes'])} up from the sites, {_bytes(summary['wire']['down_bytes'])} down to them."
    legend = (
        '<p><span class="key llm"></span> the LLM works <span class="key clients"></span> the sites work. ↓ to the sites, ↑ from them.</p>'
    )
    return f"<h2>How the run went</h2><p>{wire}</p>{legend}{charts.timeline(phases, notes)}"


def _samples(folder: Path) -> str:
    released = _rows(folder / "demonstrations.jsonl")
    feedback, written = _rows(folder / "feedback.jsonl"), _rows(folder / "task_data.jsonl")
    parts = []
    if released:
        table = [["site", "label", "text"], *([row["client"], str(row["label"]), row["text"]] for row in _spread(released))]
        parts.append(f"<h2>Demonstrations that left the sites</h2><p>{len(released)} DP-synthetic texts.</p>{_table(table)}")
    if feedback:
        shown = sorted(_spread(feedback), key=lambda row: (row["round"], -row["reward"]))
        table = [["round", "for", "label", "reward", "accepted", "text"]]
        table += [
            [str(r["round"]), r["client"], str(r["label"]), f"{r['reward']:.2f}", "yes" if r["accepted"] else "no", r["text"]]
            for r in shown
        ]
        parts.append(f"<h2>What the LLM wrote and how the sites scored it</h2>{_table(table)}")
    elif written:
        shown = _spread([row for row in written if not row["phase"].endswith("zero_shot")] or written)
        table = [["for", "label", "text", "nearest demonstration"]]
        table += [[row["client"], str(row["label"]), row["text"], near] for row, near in zip(shown, _nearest(shown, released), strict=True)]
        parts.append(f"<h2>What the LLM wrote</h2>{_table(table)}")
    return "".join(parts)


def _nearest(rows: Sequence[Mapping[str, Any]], released: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each row the most similar demonstration of its site, with the cosine of hashed words; never a private text."""
    found = []
    for row in rows:
        near = [one["text"] for one in released if one["client"] == row["client"]]
        if not near:
            found.append("-")
            continue
        table = hashed_embeddings([row["text"], *near])
        similar = table[1:] @ table[0]
        found.append(f"{similar.max():.2f}: {near[int(similar.argmax())]}")
    return found


def _small_print(folder: Path, summaries: Sequence[Mapping[str, Any]]) -> str:
    summary = summaries[0]
    failures = [f"{one['phase']} {one['client']}: {one['reason']}" for s in summaries for one in s["failures"]]
    warnings = [entry["message"] for entry in _rows(folder / "events.jsonl") if entry["event"] == "warning"]
    said = "".join(f"<li>{escape(line)}</li>" for line in dict.fromkeys((*failures, *warnings)))
    trouble = f"<h2>Failures and warnings</h2><ul>{said}</ul>" if said else ""
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    seeds = ", ".join(str(s["seed"]) for s in summaries)
    again = "<p>Run it again: the configuration below, or <code>fedduet</code> with the same overrides.</p>"
    everything = f"<details><summary>all settings</summary><pre>{escape(config)}</pre></details>"
    return f"{trouble}<h2>Configuration</h2>{again}<p>Seeds: {seeds}. {escape(versions)}.</p>{everything}"


# -- Pieces ---------------------------------------------------------------------------------------------------------------


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _spread(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """SAMPLES rows from all over, the same each time."""
    return list(rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES])


def _asked(folder: Path) -> float:
    return float(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["privacy"]["epsilon"])


def _bytes(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _table(rows: Iterable[Sequence[str]]) -> str:
    head, *body = [[escape(cell) for cell in row] for row in rows]
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    cells = [(row[0], "".join(f"<td>{cell}</td>" for cell in row[1:])) for row in body]
    lines = "".join(f'<tr><th scope="row">{first}</th>{rest}</tr>' for first, rest in cells)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="wide" tabindex="0" role="region" aria-label="table: {head[0]}, {head[-1]}">{table}</div>'
