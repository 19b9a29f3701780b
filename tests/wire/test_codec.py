"""Messages survive the wire unchanged, and nothing else gets through."""

import math

import numpy as np
import pytest
from fedduet.wire.codec import WireError, decode, encode, pack, size, unpack
from fedduet.wire.messages import (
    LabelledTexts,
    Learn,
    Receipt,
    Refused,
    Scored,
    Synthesize,
    Synthesized,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

texts = st.lists(st.text(max_size=40), max_size=6)


@settings(max_examples=50, deadline=None)
@given(texts, st.floats(min_value=0.1, max_value=1e3) | st.just(math.inf))
def test_a_message_arrives_as_it_was_sent(written, epsilon):
    data = LabelledTexts(written, [i % 2 for i in range(len(written))], [0.5] * len(written))
    receipt = Receipt("dp-sgd", epsilon, 1e-5, epsilon, len(written), noise_multiplier=0.8)
    message, arrays = unpack(pack(Synthesized(data, receipt, {"too_short": 3})))
    assert message == Synthesized(data, receipt, {"too_short": 3})
    assert arrays == {}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=20))
def test_scores_arrive_to_the_last_bit_and_in_order(scores):
    message = Scored(scores, Receipt("none", math.inf, 1e-5, math.inf, len(scores)))
    assert unpack(pack(message))[0] == message


def test_arrays_travel_beside_the_message():
    weights = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1.5], dtype=np.float32),
    }
    message, arrays = unpack(pack(Learn("id", "run", "fedavg", share_weights=True), weights))
    assert message.share_weights and arrays.keys() == weights.keys()
    assert all(
        np.array_equal(arrays[name], weights[name]) and arrays[name].dtype == np.float32
        for name in weights
    )


def test_size_counts_payload_bytes():
    message = Learn("id", "run", "m", LabelledTexts(["é" * 1000], [0]))
    record = pack(message, {"w": np.zeros(1000, dtype=np.float32)})
    assert 6000 < size(record) < 6800  # 2 bytes a character, 4 a weight, and npy headers
    assert len(encode(message)) < size(record)


@pytest.mark.parametrize(
    ("kind", "blob", "says"),
    [
        ("Pickle", b"{}", "unknown message type"),
        ("Refused", b"[1]", "expected an object"),
        ("Refused", b'{"reason": "x", "run": "os.system"}', "unknown fields run"),
        ("Refused", b"\xff\xfe", "unreadable"),
        ("Synthesize", b'{"message_id": "a"}', "unreadable"),
        (
            "Synthesize",
            (
                b'{"message_id": "a", "run": "r", "round": "x", "rounds": 1, "per_label": 1,'
                b' "epsilon": 1}'
            ),
            "round",
        ),
    ],
)
def test_anything_else_is_refused_with_a_reason(kind, blob, says):
    with pytest.raises(WireError, match=says):
        decode(kind, blob)


def test_foreign_records_are_refused():
    for record in (
        RecordDict(),
        RecordDict({"kind": ConfigRecord({"type": "Refused"})}),
        RecordDict(
            {
                "kind": ConfigRecord({"type": "Refused"}),
                "message": ArrayRecord({"json": Array(ndarray=np.zeros(3))}),
            }
        ),
    ):
        with pytest.raises(WireError):
            unpack(record)


def test_lists_of_different_length_are_no_labelled_texts():
    with pytest.raises(ValueError, match="2 texts but 1 labels"):
        LabelledTexts(["a", "b"], [0])
    with pytest.raises(WireError):
        decode(
            "Learn",
            b'{"message_id": "a", "run": "r", "model": "m", "data": {"texts": ["a"], "labels":'
            b" []}}",
        )


def test_epsilon_infinity_is_kept():
    request = Synthesize("id", "run", 0, 1, 4, math.inf)
    assert unpack(pack(request))[0].epsilon == math.inf
    assert unpack(pack(Refused("no")))[0] == Refused("no", "policy")
