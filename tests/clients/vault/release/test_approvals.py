"""What a person approves is what leaves: bound to the id, the whole request and the very bytes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from fedduet.clients.vault.dispatch import ask
from fedduet.clients.vault.release.approvals import Approvals
from fedduet.wire.messages import LabelledTexts, Learn, Learned, Refused, Score, Scored, Synthesize

DATA = LabelledTexts([f"cup {i} is fine ." for i in range(6)], [i % 2 for i in range(6)])
EACH = {"approval": "each", "approval_seconds": 0.0}
WEIGHTS = {"share_weights": True, "allow_unprotected": True}


def waiting(vault) -> list[str]:
    approvals = Approvals(vault.config.folder / "approvals")
    return [one.name for one in approvals.all() if one.decided is None]


def decide(vault, name: str, approve: bool = True) -> None:
    Approvals(vault.config.folder / "approvals").decide(name, approve)


def refused(answer, kind: str) -> bool:
    return isinstance(answer[0], Refused) and answer[0].kind == kind and answer[1] is None


REQUESTS = [
    Synthesize("m", "r", 0, 1, 3, 4.0),
    Score("m", "r", "local", DATA, 4.0, feedback="votes"),
    Score("m", "r", "local", DATA, 4.0, feedback="none"),
    Learn("m", "r", "fedavg", share_weights=True),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=["texts", "votes", "scores", "weights"])
@pytest.mark.parametrize("approve", [True, False])
def test_every_kind_of_release_waits_and_what_was_shown_leaves(site, request_, approve):
    vault = site(policy=EACH | WEIGHTS | {"share_scores": "any"})
    if isinstance(request_, Score):
        ask(vault, Learn("l", "r", "local"))
    assert refused(ask(vault, request_), "waiting") and refused(ask(vault, request_), "waiting")
    (name,) = waiting(vault)
    shown = Approvals(vault.config.folder / "approvals").answer(name)
    decide(vault, name, approve)
    answer, arrays = ask(vault, request_)
    if not approve:
        assert refused((answer, arrays), "policy")
        return
    assert answer == shown[0] and bool(arrays) == isinstance(request_, Learn)
    assert all(np.array_equal(arrays[key], shown[1][key]) for key in arrays or ())


def test_two_ids_that_shared_a_short_name_are_two_decisions(site):
    """A name of 40 bits of the id was found twice in seconds; here of 24, in less than one. One
    release of epsilon 0.5 was approved and one of 7 left."""

    def short(number: int) -> str:
        return hashlib.sha256(f"m{number}".encode()).hexdigest()[:6]

    seen: dict[str, int] = {}
    number = 0
    while short(number) not in seen:
        seen[short(number)] = number
        number += 1
    vault = site(policy=EACH)
    mild = Synthesize(f"m{seen[short(number)]}", "r", 0, 1, 3, 0.5)
    strong = Synthesize(f"m{number}", "s", 0, 1, 3, 7.0)
    assert refused(ask(vault, mild), "waiting")
    (name,) = waiting(vault)
    decide(vault, name)
    assert refused(ask(vault, strong), "waiting") and waiting(vault) not in ([], [name])
    assert ask(vault, mild)[0].receipt.epsilon <= 0.5


def test_an_approval_of_public_weights_is_not_one_of_private_ones(site):
    """The same id: first the server's own texts are learnt, then the site's records."""
    vault = site(policy=EACH | WEIGHTS)
    public = Learn("w", "r", "fedavg", DATA, private=False, share_weights=True)
    assert refused(ask(vault, public), "waiting")
    (name,) = waiting(vault)
    decide(vault, name)
    learned, weights = ask(vault, public)
    assert isinstance(learned, Learned) and weights
    again = ask(vault, public)[1]  # the kept ones, not a training anew
    assert all(np.array_equal(again[key], weights[key]) for key in weights)
    for other in (replace(public, private=True), replace(public, seed=1)):
        assert refused(ask(vault, other), "waiting")
    start = {key: value + 1 for key, value in weights.items()}
    assert refused(ask(vault, public, start), "waiting")
    assert len(waiting(vault)) == 3


def test_bytes_that_were_changed_after_the_approval_do_not_leave(site):
    vault = site(policy=EACH | {"share_scores": "private"})
    request = Score("m", "r", "local", DATA, 4.0, feedback="votes")
    ask(vault, request)
    (name,) = waiting(vault)
    decide(vault, name)
    assert isinstance(ask(vault, request)[0], Scored)
    file = vault.config.folder / "approvals" / f"{name}.body"
    file.write_bytes(file.read_bytes().replace(b"0.", b"1.", 1))
    assert refused(ask(vault, request), "data")
    file.unlink()
    assert refused(ask(vault, request), "data")
