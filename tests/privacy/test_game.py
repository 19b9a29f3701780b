"""The game against the messages: a server that plays any sequence of them sees nothing of the data
but what was charged or granted."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from fedduet.clients.vault import feedback, slm, vault
from fedduet.scripts.attacking import attack, interface
from fedduet.scripts.attacking.interface import (
    KINDS,
    LOST,
    MESSAGES,
    POLICIES,
    TEXTS,
    Game,
    Leak,
    bounds,
    message,
    play_at_random,
)
from fedduet.wire.messages import (
    Evaluate,
    Evaluated,
    LabelledTexts,
    Learn,
    Learned,
    Refused,
    Score,
    Scored,
    Synthesize,
    Synthesized,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fedduet import conf

DATA = LabelledTexts(list(TEXTS), [1, 0, 0, 1])
# `FEDDUET_GAME_EXAMPLES=200 pytest tests/privacy/test_game.py` plays for long
EXAMPLES = int(os.environ.get("FEDDUET_GAME_EXAMPLES", "6"))


@pytest.fixture(scope="module")
def config(tiny_model):
    return conf.compose(
        [
            f"slm.path={tiny_model}",
            f"generator.path={tiny_model}",
            "slm.min_steps=0",
            "slm.epochs=0.5",
            "slm.max_tokens=64",
            "slm.precision=fp32",
            "generator.precision=fp32",
            "generator.max_tokens=24",
            "generator.max_new_tokens=8",
            "generator.attempts=1",
            "generator.epochs=1",
            "generator.steps=null",
            "privacy.scorer_embedding=words",
        ]
    )


@pytest.fixture
def game(config, tmp_path):
    """game(kind, policy): a fresh game."""
    return lambda kind, policy="private": Game(tmp_path / f"{kind}-{policy}", config, kind, policy)


# --- Scripts --------------------------------------------------------------------------------------


def everything(played, message_id="m"):
    """All kinds of messages once, with repeats, a restart and lost files between."""
    learned = played.play(Learn(f"{message_id}-l", "r", "own", DATA))
    assert isinstance(learned, Learned)
    played.play(Learn(f"{message_id}-first", "r", "first", DATA, order="generated_first", part=0.5))
    assert isinstance(
        played.play(Learn(f"{message_id}-p", "r", "public", DATA, private=False)), Learned
    )
    texts = played.play(Synthesize(f"{message_id}-s", "r", 0, 1, 2, 3.0))
    assert isinstance(texts, Synthesized)
    votes = Score(f"{message_id}-v", "r", "own", DATA, 5.0, feedback="votes")
    scores = played.play(votes)
    assert isinstance(scores, Scored)
    counted = Evaluate(f"{message_id}-e", "r", "public", epsilon=7.9)
    assert isinstance(played.play(counted), Evaluated)
    played.restart()
    assert played.play(votes) == scores
    played.lose("releases")
    played.play(votes)
    played.lose("measurements")
    assert isinstance(played.play(counted), Refused)
    played.play(Score(f"{message_id}-g", "r", "own", DATA, 8.0, feedback="gaussian"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_free_is_equal_on_both_sides(game, kind):
    everything(game(kind))


@pytest.mark.parametrize("kind", ["record", "user"])
def test_what_differs_is_granted_and_in_the_ledger(game, kind):
    played = game(kind, "open")
    assert isinstance(played.play(Learn("l", "r", "own", DATA)), Learned)
    assert isinstance(played.play(Evaluate("e", "r", "own")), Evaluated)
    shared = played.play(Learn("w", "r", "own", share_weights=True))
    assert isinstance(shared, Learned) and shared.receipt.mechanism == "none"
    assert isinstance(played.play(Score("s", "r", "own", DATA, 1.0)), Scored)
    assert [line["what"] for line in played._lines(0) if "what" in line] == [
        "counts",
        "weights",
        "scores",
    ]


def test_hints_in_refusals(game):
    """Too few records, models that are not there, too many texts: the same words on both sides."""
    played = game("record", "few")
    for request in (
        Synthesize("a", "r", 0, 1, 2, 3.0),
        Learn("b", "r", "own", start="nowhere"),
        Learn("c", "r", "own", LabelledTexts(["a"], [7])),
        Evaluate("d", "r", "nowhere", epsilon=1.0),
        *(Learn(f"e{number}", "r", "own") for number in range(4)),
    ):
        answer = played.play(request)
    assert isinstance(answer, Refused) and "maximum_trainings" in answer.reason


# --- Any sequence of messages ---------------------------------------------------------------------


class Server(RuleBasedStateMachine):
    """Plays messages of any kind with fields at their bounds, repeats, restarts and losses."""

    config = None

    @initialize(kind=st.sampled_from(KINDS), policy=st.sampled_from(sorted(POLICIES)))
    def begin(self, kind, policy):
        self.folder = Path(tempfile.mkdtemp())
        self.game, self.last = Game(self.folder / "game", self.config, kind, policy), None

    @rule(
        kind=st.sampled_from(MESSAGES),
        of=st.fixed_dictionaries(
            {name: st.sampled_from(values) for name, values in bounds().items()}
        ),
    )
    def ask(self, kind, of):
        self.last = message(kind, of)
        self.game.play(self.last)

    @rule(
        kind=st.sampled_from(MESSAGES),
        of=st.fixed_dictionaries(
            {name: st.sampled_from(values[:2]) for name, values in bounds().items()}
        ),
    )
    def ask_what_may_work(self, kind, of):
        self.last = message(kind, of)
        self.game.play(self.last)

    @rule()
    def repeat(self):
        if self.last is not None:
            self.game.play(self.last)

    @rule()
    def restart(self):
        self.game.restart()

    @rule(what=st.sampled_from(LOST))
    def lose(self, what):
        self.game.lose(what)

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


def test_any_sequence_of_messages(config):
    Server.config = config
    profile = settings(
        max_examples=EXAMPLES,
        stateful_step_count=10,
        deadline=None,
        database=None,
        derandomize=EXAMPLES < 10,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Server, settings=profile)


def test_the_commands_own_play_gets_somewhere(game):
    heard = play_at_random(game("more"), 25, random.Random(3))
    assert heard.get("Learned", 0) >= 2 and heard.get("policy", 0) >= 1


# --- The game finds a leak of one number ----------------------------------------------------------


def rows_told(patch):
    """`Learned` tells rows instead of units."""

    def told(self, *given):
        answer, arrays = LEARN(self, *given)
        rows = len(self._records.train)
        changed = vault.replace(answer, private_units=rows) if hasattr(answer, "steps") else answer
        return changed, arrays

    patch.setattr(vault.Vault, "learn", told)


def steps_of_rows(patch):
    """Steps are planned for the rows that there are."""
    patch.setattr(vault.Vault, "learn", _with_rows(LEARN))


def _with_rows(learn):
    def learning(self, *given):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vault, "public_rows", lambda *_: len(self._records.train))
            return learn(self, *given)

    return learning


def private_view(patch):
    """The votes are looked at in a view of the private vectors."""
    of = feedback.View.of
    opened = vault.Vault._score_by_votes

    def votes(self, *given):
        own, _ = self._embedded_records
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(feedback.View, "of", staticmethod(lambda texts: of(own)))
            return opened(self, *given)

    patch.setattr(vault.Vault, "_score_by_votes", votes)


def unpadded(patch):
    """Rows of a real site keep their own lengths."""
    train = slm.train_classifier
    patch.setattr(slm, "train_classifier", lambda *given, padded, **named: train(*given, **named))


LEARN = vault.Vault.learn


@pytest.mark.parametrize(
    ("mutant", "kind"),
    [(rows_told, "more"), (steps_of_rows, "user"), (private_view, "record"), (unpadded, "longer")],
)
def test_a_leak_of_one_number_is_found(game, monkeypatch, mutant, kind):
    mutant(monkeypatch)
    with pytest.raises(Leak):
        everything(game(kind))


def test_the_command_plays_every_kind_under_every_policy(tiny_model, capsys, monkeypatch):
    models = [f"slm.path={tiny_model}", f"generator.path={tiny_model}"]
    assert attack.main(["interface", "--moves", "2", *models, "generator.max_tokens=24"]) == 0
    said = capsys.readouterr().out
    assert "no leak" in said and said.count("default") == len(KINDS)
    rows_told(monkeypatch)
    monkeypatch.setattr(interface, "KINDS", ("more",))
    monkeypatch.setattr(interface, "POLICIES", {"default": {}})
    monkeypatch.setattr(interface, "MESSAGES", ("learn",))
    assert attack.main(["interface", "--moves", "12", *models]) == 1
    assert "leak: more, policy default: Learn" in capsys.readouterr().err
