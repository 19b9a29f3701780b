"""How a run went, as a picture: what crossed between sites and cloud, at what size and epsilon, and
the phases on a time line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from fedduet.scripts.reporting import charts
from fedduet.scripts.reporting.html import in_bytes, opened, rows_of, table
from fedduet.strategies.run.summary import told

SITES, CLOUD, UP, DOWN = "sites", "cloud", "up", "down"


@dataclass
class Traffic:
    """Phases of one kind: how many, and bytes to the sites and from them."""

    phases: list[str] = field(default_factory=list)
    down: int = 0
    up: int = 0


def flow(folder: Path, summary: Mapping[str, Any]) -> str:
    """The picture of what crossed, then the time line, then both as a table."""
    phases, moved = _read(folder)
    steps = "".join(
        f'<li class="{kind}"><span class="lane">{escape(_LANE[kind])}</span><span'
        f' class="what">{escape(what)}</span>'
        + (f'<span class="cost">{escape(cost)}</span>' if cost else "")
        + "</li>"
        for kind, what, cost in _steps(folder, summary, moved)
    )
    wire = summary["wire"]
    said = (
        f"{in_bytes(wire['up_bytes'])} up from the sites, {in_bytes(wire['down_bytes'])} down to"
        " them, baselines included."
    )
    notes = {phase: f"↓{in_bytes(one.down)} ↑{in_bytes(one.up)}" for phase, one in moved.items()}
    lines = [["phase", "who works", "began, s", "took, s", "to the sites", "from the sites"]]
    for name, side, start, seconds in phases:
        one = moved.get(name, Traffic())
        who = {"llm": "the LLM", "clients": "the sites"}.get(side, "the server")
        lines.append(
            [name, who, f"{start:.1f}", f"{seconds:.1f}", in_bytes(one.down), in_bytes(one.up)]
        )
    legend = (
        '<p><span class="key llm"></span> the LLM works <span class="key clients"></span> the sites'
        " work. ↓ to the sites, ↑ from them.</p>"
    )
    return (
        f'<p>{escape(said)}</p><div class="lanes" aria-hidden="true"><span>the sites: records stay'
        " here</span>"
        f'<span>the cloud: server and LLM</span></div><ol class="flow">{steps}</ol><h3>On a time'
        f" line</h3>{legend}"
        f"{charts.timeline(phases, notes)}"
        f"{opened('the phases as a table', table(lines, 'phases'))}"
    )


def phases_of(folder: Path) -> list[tuple[str, str, float, float]]:
    """Phases that are done, as (name, side, start, seconds)."""
    return _read(folder)[0]


_LANE = {UP: "sites to cloud", DOWN: "cloud to sites", SITES: "at the sites", CLOUD: "in the cloud"}


def _read(folder: Path) -> tuple[list[tuple[str, str, float, float]], dict[str, Traffic]]:
    """Phases as (name, side, start, seconds) over all starts of the run, and what moved in each."""
    starts: dict[str, float] = {}
    phases: list[tuple[str, str, float, float]] = []
    moved: dict[str, Traffic] = {}
    before = last = 0.0  # seconds of earlier starts of the run, whose clocks began again
    for entry in rows_of(folder / "events.jsonl"):
        if entry["event"] == "start":
            before, last = before + last, 0.0
        last = entry["elapsed"]
        match entry["event"]:
            case "phase_start":
                starts[entry["phase"]] = before + entry["elapsed"]
            case "phase_end":
                phases.append(
                    (
                        entry["phase"],
                        entry["side"],
                        starts.get(entry["phase"], 0.0),
                        entry["seconds"],
                    )
                )
            case "sent":
                moved.setdefault(entry["phase"], Traffic()).down += entry["bytes"]
            case "answered":
                moved.setdefault(entry["phase"], Traffic()).up += entry["bytes"]
    return phases, moved


def _steps(
    folder: Path, summary: Mapping[str, Any], moved: Mapping[str, Traffic]
) -> list[tuple[str, str, str]]:
    """(kind, what, what it cost) of the method itself, in order; baselines together at the end."""
    own, others = _own(summary, moved)
    written = [row for row in rows_of(folder / "task_data.jsonl") if _method(row["phase"], summary)]
    released, scored = rows_of(folder / "demonstrations.jsonl"), rows_of(folder / "feedback.jsonl")
    steps: list[tuple[str, str, str]] = []
    if "synthesize" in own:
        steps.append(
            (DOWN, "how many texts are wanted, at which epsilon", in_bytes(own["synthesize"].down))
        )
        steps.append(
            (
                SITES,
                (
                    "DP-SGD on a generator, charged in the site's ledger first; its samples are the"
                    " demonstrations"
                ),
                "",
            )
        )
        cost = f"{in_bytes(own['synthesize'].up)}, {_epsilon(summary, own)}"
        steps.append((UP, f"{len(released):,} DP-synthetic texts", cost))
        kept = [
            entry["counts"]["kept"]
            for entry in summary.get("curated", [])
            if entry["event"] == "curated"
        ]
        if kept:
            steps.append((CLOUD, f"groups and judges them: {sum(kept):,} are kept", ""))
    if "score" in own:
        rounds = _times(own["score"].phases)
        steps.append(
            (
                CLOUD,
                f"the LLM writes texts of every label for every site's domain{rounds}",
                f"{len(scored):,} texts",
            )
        )
        steps.append((DOWN, f"the texts and their labels{rounds}", in_bytes(own["score"].down)))
        guarantee = (
            _epsilon(summary, own) if summary.get("feedback") != "none" else "no formal guarantee"
        )
        steps.append(
            (UP, f"a score for each text{rounds}", f"{in_bytes(own['score'].up)}, {guarantee}")
        )
        accepted = sum(row["accepted"] for row in scored)
        learns = "the LLM learns from the scores, and the task from the accepted texts"
        what = learns if "llm_accuracy" in summary else "the best-rated texts are kept"
        steps.append((CLOUD, f"{what}{rounds}", f"{accepted:,} accepted"))
    elif written:
        after = "after the demonstrations" if released else "from the domain's name"
        steps.append((CLOUD, f"the LLM writes labelled texts {after}", f"{len(written):,} texts"))
    if "learn" in own:
        what = "labelled texts to learn from" if written or scored else "the request to learn"
        steps.append((DOWN, f"{what}{_times(own['learn'].phases)}", in_bytes(own["learn"].down)))
        what = "every SLM learns from its own records" + (
            " and these texts" if written or scored else "; the model stays there"
        )
        steps.append((SITES, what, ""))
    if "measure" in own:
        steps.append(
            (
                UP,
                "counts of right answers on the site's own test",
                in_bytes(own["learn"].up + own["measure"].up),
            )
        )
    if summary.get("answers"):
        steps += _answering(summary, moved)
    if others.phases:
        what = f"baselines, only to compare with ({len(others.phases)} phases)"
        steps.append((DOWN, what, f"{in_bytes(others.down)}, and {in_bytes(others.up)} back"))
    return steps


def _answering(
    summary: Mapping[str, Any], moved: Mapping[str, Traffic]
) -> list[tuple[str, str, str]]:
    asked = [one for phase, one in moved.items() if phase.startswith("answer-")]
    questions = max(found["questions"] for found in summary["answers"].values())
    tokens = sum(found["llm_tokens"] * found["questions"] for found in summary["answers"].values())
    return [
        (
            DOWN,
            f"by which method to answer ({len(asked)} methods)",
            in_bytes(sum(one.down for one in asked)),
        ),
        (SITES, f"search and answer {questions} test questions by each method", ""),
        (
            UP,
            (
                "questions and steps so far, to the LLM that the site's policy allows, and to"
                " nobody else"
            ),
            f"{tokens:,.0f} LLM tokens",
        ),
        (
            UP,
            "counts: right answers, tokens, rewards, seconds; no question, answer or step",
            in_bytes(sum(one.up for one in asked)),
        ),
    ]


def _own(
    summary: Mapping[str, Any], moved: Mapping[str, Traffic]
) -> tuple[dict[str, Traffic], Traffic]:
    """What moved for the method itself, by kind of phase, and for all baselines together."""
    own: dict[str, Traffic] = {}
    others = Traffic()
    for phase, one in moved.items():
        kind = phase.partition("-")[0]
        if kind in ("introduce", "answer"):
            continue
        into = own.setdefault(kind, Traffic()) if _method(phase, summary) else others
        into.phases.append(phase)
        into.down, into.up = into.down + one.down, into.up + one.up
    return own, others


def _method(phase: str, summary: Mapping[str, Any]) -> bool:
    """Whether a phase belongs to the method itself: numbered by its rounds, or named after what it
    teaches."""
    name = phase.partition("-")[2].removesuffix("-prompts")
    taught = told(summary)["taught"]
    return (
        name.isdigit() or name in taught or any(name.startswith(f"{one}-round-") for one in taught)
    )


def _times(phases: Sequence[str]) -> str:
    return f", {len(phases)} rounds" if len(phases) > 1 else ""


def _epsilon(summary: Mapping[str, Any], own: Mapping[str, Traffic]) -> str:
    """The largest epsilon of a site's ledger; a receipt tells the last release alone, so that
    several are told together."""
    spent = list(summary["epsilon"].values())
    if not spent:
        return "nothing charged"
    if math.isinf(max(spent)):
        return "no formal guarantee"
    releases = sum(len(own[kind].phases) for kind in ("synthesize", "score") if kind in own)
    return f"epsilon {max(spent):.2f} at most" + (
        f" for all {releases} releases together" if releases > 1 else ""
    )
