"""Sweeps: a folder for each job that tells its overrides, failures that stop nobody, restarts that
repeat nothing, one table and page."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.conf.check import ConfigError
from fedduet.scripts.sweeping.page import page
from fedduet.scripts.sweeping.plan import is_sweep, job_name, plan, run_job, state
from fedduet.scripts.sweeping.report import conclude, main
from fedduet.scripts.sweeping.rows import read_jobs, rows, table

OFF = (
    "strategy.baselines={local: true, dp_only: false, zero_shot: false, fedavg: false, pooled:"
    " false}"
)


def fedduet(*arguments):
    command = [sys.executable, "-m", "fedduet.scripts.run", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, env=os.environ | {"COLUMNS": "200"}
    )


def test_a_sweep_goes_on_after_a_failure_and_a_second_start_repeats_nothing(overrides, tmp_path):
    base = [entry for entry in overrides if not entry.startswith("run.folder")]
    folder = tmp_path / "swept"
    command = [
        "-m",
        *base,
        OFF,
        "privacy.epsilon=4,8",
        "generator.logical_batch=64,16",
        "seed=0",
        f"hydra.sweep.dir={folder}",
    ]
    first = fedduet(*command)
    assert first.returncode == 1 and "Traceback" not in first.stderr, first.stdout + first.stderr
    assert "4 jobs" in first.stdout and "2 of 4 jobs completed" in first.stdout
    names = [path.parent.name for path in sorted(folder.glob("*/job.json"))]
    assert len(names) == 4 and all(
        name.startswith("privacy.epsilon=") and ",generator.logical_batch=" in name
        for name in names
    )
    bad, *_ = [line for line in first.stdout.splitlines() if line.startswith("failed: ")]
    assert "generator.logical_batch=64" in bad and "fewer than the logical batch of 64" in bad
    good = [folder / name for name in names if "logical_batch=16" in name]
    before = {path: (path / "events.jsonl").read_bytes() for path in good}
    epsilons = {
        json.loads((path / "summary.json").read_text())["epsilon"]["coffee"] for path in good
    }
    assert len(epsilons) == 2 and max(epsilons) <= 8

    (good[0] / "summary.json").unlink()  # as if it had been stopped before the end
    (good[0] / "checkpoint" / "learn-fdkt.json").unlink()
    second = fedduet(*command, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    assert second.returncode == 1, second.stdout + second.stderr
    assert second.stdout.count("finished before") == 1 and "resuming" in second.stdout
    assert (good[1] / "events.jsonl").read_bytes() == before[good[1]]
    resumed = [
        json.loads(line)["event"] for line in (good[0] / "events.jsonl").read_text().splitlines()
    ]
    assert resumed.count("start") == 2 and "phase_reused" in resumed
    # nothing was paid twice
    assert len(Ledger(good[0] / "sites" / "coffee" / "ledger.jsonl", 8.0, 1e-5).entries()) == 1

    assert main([str(folder), "--out", str(tmp_path / "page.html")]) == 1
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?://|<link|<img|url[(]", text)
    assert "Accuracy against privacy.epsilon" in text and "2 of 4 jobs completed" in text
    assert 'href="./' not in text  # the jobs are not beside it
    links = re.findall(r'<a href="\./([^"]+)"', (folder / "sweep.html").read_text())
    assert all(
        text.count(f"<{tag}") == text.count(f"</{tag}>")
        for tag in ("svg", "table", "tr", "a", "main")
    )
    assert len(links) == 2 and all(link.endswith("report.html") for link in links)


def summary(accuracies, epsilon, strategy="fdkt"):
    return {
        "status": "completed",
        "strategy": strategy,
        "accuracy": accuracies,
        "epsilon": {"a": epsilon},
        "llm": {"description": "stand-in LLM"},
        "seconds": {"total": 2.0},
    }


def put(folder, job, values):
    (folder / job).mkdir(parents=True)
    (folder / job / "summary.json").write_text(json.dumps(values))


def test_figures_are_over_seeds_and_differences_paired_by_seed(tmp_path, capsys):
    sweep = plan(
        [
            "-m",
            "privacy.epsilon=1,8",
            "seed=0,1",
            "federation=inprocess",
            f"hydra.sweep.dir={tmp_path}",
        ]
    )
    assert next(iter(sweep.jobs)) == "privacy.epsilon=1,seed=0"
    for seed, local in ((0, 0.5), (1, 0.7)):
        put(
            tmp_path,
            f"privacy.epsilon=1,seed={seed}",
            summary({"fdkt": local + 0.1, "local": local}, 1.0),
        )
    put(tmp_path, "privacy.epsilon=8,seed=0", summary({"fdkt": 0.9, "local": 0.5}, math.inf))
    jobs = read_jobs(tmp_path)
    assert [job.state for job in jobs] == ["completed", "completed", "completed", "missing"]
    lines = table(rows(jobs))
    # t(0.975, 1) = 12.706 times 0.1
    assert lines[1] == ["1", "local", "0.600 [-0.671, 1.871]", "", "-", "2"]  # it asks nobody
    assert lines[2] == ["1", "fdkt", "0.700 [-0.571, 1.971]", "+10.0 [+10.0, +10.0]", "1.00", "2"]
    assert lines[4] == ["8", "fdkt", "0.900", "+40.0", "no guarantee", "1"]
    assert (
        conclude(tmp_path, sweep.jobs) == 1
        and "missing: privacy.epsilon=8,seed=1" in capsys.readouterr().out
    )
    assert conclude(tmp_path, list(sweep.jobs)[:3]) == 0
    text = page(tmp_path, jobs)
    assert "best: fdkt (epsilon 8) with 0.900" in text
    assert "fdkt from 0.700 to 0.900" in text  # what a screen reader says of the picture
    with pytest.raises(ConfigError, match=r"no sweep\.json"):
        main([str(tmp_path / "none")])


def test_the_same_command_finds_the_same_folder_and_names_tell_overrides(tmp_path):
    words = ["-m", "strategy=fdkt,crosslm", "seed=0,1", "federation=inprocess"]
    one, two = plan(words, tmp_path), plan([*words[:-1], "federation=simulation"], tmp_path)
    # where it runs makes no other sweep
    assert one.folder == two.folder and one.folder.parent == tmp_path and len(one.jobs) == 4
    assert next(iter(one.jobs)) == "strategy=fdkt,seed=0"
    other = plan([*words, "privacy.epsilon=3"], tmp_path)
    assert other.folder != one.folder  # what is the same in all jobs is in no name, but in this one
    assert list(other.jobs) == list(one.jobs)
    long = job_name(["task.path=/a b/" + "x" * 300, "seed=1"], ["seed", "task.path"])
    assert long.startswith("seed=1,task.path=_a_b_xx") and len(long) < 170
    assert job_name(["task.path=/a b/", "seed=1"], ["seed"]) == "seed=1"
    assert job_name(["task.path=/a_b"], []) != job_name(["task.path=/a/b"], [])
    assert "/" not in job_name(["seed=../../x"], []) and not job_name(
        ["+seed=../x"], []
    ).startswith(".")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=0", "strategy=fdkt"], "nothing is swept"),
        (["seed=0,1", "run.folder=x"], "run.folder: every job"),
        (["seed=0,0"], "seed=0: this job is in the sweep twice"),
        (["seed=0", "federation.cpus_per_client=1,2"], "in the sweep twice"),
        (["strategy=glob(*)"], "allowed in a sweep"),
    ],
)
def test_what_cannot_be_swept_is_said(words, says, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(says)):
        plan(["-m", *words], tmp_path)


def test_showing_a_sweep_is_not_a_sweep():
    assert is_sweep(["-m", "seed=0,1"]) and is_sweep(["seed=0,1", "--multirun"])
    assert not is_sweep(["seed=0"]) and not is_sweep(["-m", "seed=0,1", "--cfg", "job"])


def test_a_crash_is_written_down_and_a_folder_of_another_run_is_kept(tmp_path):
    (name, other), plan_ = (
        ["seed=0", "seed=1"],
        plan(["-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}"]),
    )
    assert list(plan_.jobs) == [name, other]

    def crash(config):
        raise ZeroDivisionError("of models")

    run_job(tmp_path, [name], {"run": {"folder": None}, "seed": 0}, crash)
    assert state(tmp_path / name) == ("failed", "ZeroDivisionError: of models")
    assert "crash" in (tmp_path / name / "traceback.txt").read_text()
    assert state(tmp_path / other)[0] == "missing"
    (tmp_path / other).mkdir()
    (tmp_path / other / "events.jsonl").write_text("")
    assert state(tmp_path / other)[0] == "unfinished"
    assert [job.state for job in read_jobs(tmp_path)] == ["failed", "unfinished"]


def test_a_job_whose_page_failed_after_its_end_is_kept_as_finished(tmp_path):
    plan(["-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}"])
    put(tmp_path, "seed=0", summary({"local": 0.5}, 1.0))
    (tmp_path / "seed=0" / "job.json").write_text(
        json.dumps({"status": "failed", "problem": "no room for the page"})
    )
    assert state(tmp_path / "seed=0")[0] == "failed"
    run_job(
        tmp_path,
        ["seed=0"],
        {"run": {"folder": None}, "seed": 0},
        lambda config: pytest.fail("it ran again"),
    )
    assert state(tmp_path / "seed=0") == ("completed", "")
