"""The courier: every request gets an answer, and what the site does not do, or cannot, comes back
as a reason without records."""

import json

import numpy as np
import pytest
from fedduet.clients.app import app
from fedduet.clients.vault import synthesis
from fedduet.scripts.launching.inprocess import InProcessGrid
from fedduet.wire.codec import pack, unpack
from fedduet.wire.messages import (
    Introduce,
    Introduced,
    LabelledTexts,
    Receipt,
    Refused,
    Score,
    Scored,
    Synthesize,
    Synthesized,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedduet import conf

RECEIPT = Receipt("dp-sgd", 1.0, 1e-5, 1.0, 0)


@pytest.fixture
def tell(overrides):
    """tell(content): the answer of the coffee site's courier."""
    grid = InProcessGrid(app, 2, {"config": conf.dump(conf.compose(overrides))})

    def asked(content):
        (reply,) = grid.send_and_receive([grid.create_message(content, "query.synthesize", 1, "g")])
        assert not reply.has_error(), reply.error
        return unpack(reply.content)[0]

    return asked


def raw(kind, values):
    blob = np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)
    return RecordDict(
        {
            "kind": ConfigRecord({"type": kind}),
            "message": ArrayRecord({"json": Array(ndarray=blob)}),
        }
    )


def test_a_request_for_a_folder_outside_is_refused_and_nothing_is_written(tell, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for values in (
        {"model": "../../../x"},
        {"model": "m", "run": "../.."},
        {"model": "m", "start": "/etc"},
    ):
        answer = tell(raw("Learn", {"message_id": "a", "run": "r"} | values))
        assert (
            isinstance(answer, Refused)
            and answer.kind == "request"
            and "letters, digits, dots" in answer.reason
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_request_for_scores_reaches_the_vault(tell):
    data = LabelledTexts(["a fine cup .", "it broke at once ."], [1, 0])
    answer = tell(pack(Score("s", "r", "local", data, 8.0, feedback="votes")))
    assert (
        isinstance(answer, Scored)
        and len(answer.scores) == 2
        and answer.receipt.mechanism == "gaussian-votes"
    )
    refused = tell(
        raw(
            "Score",
            {
                "message_id": "a",
                "run": "r",
                "model": "m",
                "data": {},
                "epsilon": 1.0,
                "feedback": "laplace",
            },
        )
    )
    assert isinstance(refused, Refused) and "allowed: none, votes, gaussian" in refused.reason


def test_what_is_no_request_gets_an_answer_too(tell):
    for content in (
        RecordDict(),
        raw("Exec", {}),
        pack(Refused("no")),
        pack(Synthesized(LabelledTexts(), RECEIPT)),
    ):
        answer = tell(content)
        assert isinstance(answer, Refused) and answer.kind == "request"


def test_an_exception_in_training_reaches_the_server_without_its_text(tell, monkeypatch):
    def crash(*_, **__):
        raise ValueError("row 3: 'my private text' is odd")

    monkeypatch.setattr(synthesis, "train_generator", crash)
    assert tell(pack(Introduce("i", "r"))) == Introduced("coffee", "coffee")
    answer = tell(pack(Synthesize("s", "r", 0, 1, 2, 8.0)))
    assert answer == Refused("synthesize failed; the site's failures.log says why", "error")


def test_a_node_that_is_not_simulated_opens_nothing(overrides, tmp_path):
    grid = InProcessGrid(app, 1, {"config": conf.dump(conf.compose(overrides))})
    del grid._contexts[1].node_config["partition-id"]  # as on a real SuperNode
    (reply,) = grid.send_and_receive(
        [grid.create_message(pack(Introduce("i", "r")), "query.introduce", 1, "g")]
    )
    answer = unpack(reply.content)[0]
    assert isinstance(answer, Refused) and "names no vault" in answer.reason
