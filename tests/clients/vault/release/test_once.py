"""One charge is one release: what was lost is not drawn again, what failed runs again with the same
coins, and what is kept is what left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fedduet.clients.vault import feedback, synthesis
from fedduet.clients.vault.budget import journal
from fedduet.clients.vault.budget.kept import bind
from fedduet.clients.vault.budget.ledger import Ledger, LedgerError
from fedduet.clients.vault.refusing import LEDGER
from fedduet.clients.vault.release import releases
from fedduet.clients.vault.release.once import Once
from fedduet.lm.dp.accounting import Event
from fedduet.wire.messages import LabelledTexts, Refused, Score, Scored, Synthesize, Synthesized

DATA = LabelledTexts([f"cup {i} is fine ." for i in range(8)], [i % 2 for i in range(8)])


def votes(id="v", **changes) -> Score:
    return Score(
        **{
            "message_id": id,
            "run": "r",
            "model": "local",
            "data": DATA,
            "epsilon": 4.0,
            "feedback": "votes",
        }
        | changes
    )


def texts(id="t") -> Synthesize:
    return Synthesize(id, "r", 0, 1, 3, 4.0)


def charges(vault) -> list:
    return Ledger(vault.config.folder / "ledger.jsonl", 99.0, 1e-5).entries()


def refused_by_ledger(answer) -> bool:
    """With the one reason that says nothing of the site."""
    return answer in [
        Refused(f"{method}: {LEDGER}", "ledger") for method in ("score", "synthesize")
    ]


@pytest.mark.parametrize("request_", [votes(), texts()])
def test_what_was_lost_is_not_drawn_again(site, request_, monkeypatch):
    """With `releases` gone after each answer one charge bought as many noisy answers as wanted."""
    vault, drawn, draw = site(), [], feedback.noisy_votes
    monkeypatch.setattr(
        feedback, "noisy_votes", lambda *given: drawn.append(draw(*given)) or drawn[-1]
    )
    call = "score" if isinstance(request_, Score) else "synthesize"
    first = getattr(vault, call)(request_)
    assert isinstance(first, Scored | Synthesized)
    shutil.rmtree(vault.config.folder / "releases")
    for _ in range(3):
        assert refused_by_ledger(getattr(site(), call)(request_))
    assert len(drawn) <= 1 and len(charges(vault)) == 1
    assert (
        "is gone; a second one would be drawn anew"
        in (vault.config.folder / "failures.log").read_text()
    )


def test_a_mechanism_that_failed_shows_the_same_again(site, monkeypatch):
    """Six failures after the noise was drawn are one mechanism: the coins are the same each time,
    and so is what leaves in the end."""
    drawn, draw, reasons = [], feedback.noisy_votes, set()
    monkeypatch.setattr(
        feedback, "noisy_votes", lambda *given: drawn.append(draw(*given)) or drawn[-1]
    )
    with monkeypatch.context() as patch:
        for number in range(6):
            failure = (OSError, RuntimeError, KeyError)[number % 3]

            def fail(*_, failure=failure):
                raise failure("private coffee")

            patch.setattr(feedback, "opinions", fail)
            reasons.add(site().score(votes()))
    assert reasons == {Refused("score failed; the site's failures.log says why", "error")}
    assert isinstance(site().score(votes()), Scored)
    assert len(drawn) == 7 and len({tuple(noisy) for noisy in drawn}) == 1
    assert len(charges(site())) == 1
    site("other").score(votes())
    assert not np.array_equal(drawn[-1], drawn[0])  # another site has other coins


def test_dp_sgd_runs_again_with_the_same_coins(site, monkeypatch):
    states, train = [], synthesis.train_generator

    def watched(model, *given, **named):
        report = train(model, *given, **named)
        states.append(
            (
                report.batch_sizes,
                [p.detach().clone() for p in model.parameters() if p.requires_grad],
            )
        )
        return report

    monkeypatch.setattr(synthesis, "train_generator", watched)
    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "sample_texts", lambda *_, **__: 1 / 0)
        assert site().synthesize(texts()).kind == "error"
    assert isinstance(site().synthesize(texts()), Synthesized)
    (sizes, one), (again, two) = states
    assert sizes == again and all((a == b).all() for a, b in zip(one, two, strict=True))
    assert len(charges(site())) == 1


def test_what_failed_does_not_run_for_another_request_nor_with_other_coins(site, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(feedback, "opinions", lambda *_: 1 / 0)
        site().score(votes())
    other = LabelledTexts(DATA.texts[::-1], DATA.labels)
    assert refused_by_ledger(site().score(votes(data=other)))
    shutil.rmtree(site().config.folder / "coins")
    assert refused_by_ledger(site().score(votes()))
    log = (site().config.folder / "failures.log").read_text()
    # each is there twice: as the sentence, and in its traceback
    assert log.count("for another request, or with coins that are gone") == 4


def test_another_file_in_place_of_the_kept_one_does_not_leave(site):
    vault = site()
    one, two = vault.score(votes("a", rounds=2)), vault.score(votes("b", rounds=2, round=1))
    folder = vault.config.folder / "releases"
    files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    shutil.copy(files[1], files[0])
    assert refused_by_ledger(vault.score(votes("a", rounds=2)))
    assert vault.score(votes("b")) == two != one


def test_a_scorer_that_is_lost_or_changed_is_not_trained_again(site, monkeypatch):
    vault = site()
    first = vault.score(votes("a", feedback="gaussian"))
    assert isinstance(first, Scored)
    (file,) = (vault.config.folder / "scorers").rglob("*.npz")
    whole = file.read_bytes()
    monkeypatch.setattr(feedback, "train_scorer", lambda *_: pytest.fail("trained again"))
    file.unlink()
    assert refused_by_ledger(vault.score(votes("b", feedback="gaussian")))
    file.write_bytes(whole[:-30] + bytes(30))
    assert refused_by_ledger(vault.score(votes("b", feedback="gaussian")))
    file.write_bytes(whole)
    assert vault.score(votes("b", feedback="gaussian")).scores == first.scores


def test_a_release_that_nobody_charged_is_not_answered_with(site):
    """All of the ledger deleted, and the releases left."""
    vault = site()
    vault.score(votes())
    for file in vault.config.folder.glob("ledger.*"):
        file.unlink()
    assert refused_by_ledger(vault.score(votes()))
    assert "does not know of it" in (vault.config.folder / "failures.log").read_text()


def test_coins_are_of_one_key_and_one_request_and_are_forgotten(tmp_path):
    one, again, other = (Once(tmp_path, "m", request) for request in (b"a", b"a", b"b"))
    assert one.coins == again.coins != other.coins
    assert np.array_equal(one.noise().uniform(9), again.noise().uniform(9))
    assert (one.noise().normal(9) == again.noise().normal(9)).all()
    assert one.noise().integer(10**40) == again.noise().integer(10**40)
    Once.forget(tmp_path, "m")
    assert list(tmp_path.iterdir()) == []
    assert Once(tmp_path, "m", b"a").coins != one.coins
    assert Once(tmp_path, "m2", b"a").coins != Once(tmp_path, "m", b"a").coins


def test_everything_is_on_the_disk_in_this_order(site, monkeypatch):
    """By file, what was synced: a kill test cannot see a missing sync, a loss of power would."""
    synced, names, sync = [], [], os.fsync

    def watched(descriptor):
        file = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append("folder" if file.is_dir() else file.suffix)
        names.append(file.name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    vault = site()
    monkeypatch.setattr(
        feedback,
        "opinions",
        lambda *_: synced.append("noise drawn") or np.full(8, 0.5),
    )
    vault.score(votes())
    line = [".jsonl", ".lock", ".head"]
    assert synced == [
        *(".partial", "folder"),  # the key, and its name
        *(".jsonl", "folder", ".lock", ".head", "folder"),  # the charge, in new files
        "noise drawn",
        *(".partial", "folder"),  # the release
        *line,  # its digest
    ]
    assert "ledger.jsonl" in names and "ledger.head" in names
    synced.clear()
    vault.score(votes("b", run="other"))
    assert synced == [".partial", "folder", *line, "noise drawn", ".partial", "folder", *line]


def test_a_release_is_bound_once_and_only_where_it_was_paid_for(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", 8.0, 1e-5)
    ledger.charge("a", "r", "votes", Event.gaussian(20.0), 1)
    bind(ledger.path, "a", "0" * 64)
    before = ledger.path.read_bytes()
    bind(ledger.path, "a", "0" * 64)
    assert ledger.path.read_bytes() == before
    with pytest.raises(LedgerError, match="is not what left"):
        bind(ledger.path, "a", "1" * 64)
    with pytest.raises(LedgerError, match="does not know of it"):
        bind(ledger.path, "b", "0" * 64)
    bind(ledger.path, "b", "0" * 64, paid_by={"a"})
    with pytest.raises(LedgerError, match="is gone; a second one would be drawn anew"):
        ledger.charge("a", "r", "votes", Event.gaussian(20.0), 1)
    assert len(ledger.entries()) == 1


def test_modules_sync_through_os(monkeypatch):
    """The spy above sees every sync only if no module holds its own."""
    assert journal.os is os and releases.os is os
