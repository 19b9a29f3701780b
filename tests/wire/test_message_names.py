"""Names in messages become folders at a site, so nothing but a plain name gets through, and
requests have bounds."""

import json

import pytest
from fedduet.wire import codec
from fedduet.wire.codec import WireError, decode, encode, pack, unpack
from fedduet.wire.messages import (
    Evaluate,
    Introduce,
    LabelledTexts,
    Learn,
    Score,
    Synthesize,
    is_name,
)

ESCAPES = [
    "../../x",
    "..",
    ".",
    "/etc",
    "a/b",
    "a\\b",
    "",
    "x" * 65,
    ".hidden",
    "a\n",
    "a\x00",
    "-",
    "ä",
    "~",
]
REQUESTS = {
    "Introduce": {"message_id": "m", "run": "r"},
    "Synthesize": {
        "message_id": "m",
        "run": "r",
        "round": 0,
        "rounds": 1,
        "per_label": 1,
        "epsilon": 1.0,
    },
    "Learn": {"message_id": "m", "run": "r", "model": "m", "start": "m"},
    "Evaluate": {"message_id": "m", "run": "r", "model": "m"},
    "Score": {
        "message_id": "m",
        "run": "r",
        "model": "m",
        "data": {"texts": ["a"], "labels": [0]},
        "epsilon": 1.0,
    },
}


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_that_could_lead_elsewhere_is_refused(kind, name):
    for key in {"run", "model", "start"} & REQUESTS[kind].keys():
        with pytest.raises(WireError, match=f"{key}: found"):
            decode(kind, json.dumps(REQUESTS[kind] | {key: name}).encode())


def test_names_of_a_run_pass():
    for name in ("fdkt", "fdkt-round-0", "0a1b2c3d4e5f6071", "a.b_c", "x" * 64):
        assert is_name(name)
    for message in (
        Introduce("0a1b/introduce/1", "0a1b"),
        # an id is hashed, never a path
        Synthesize("0a1b/synthesize-0/Küche & Bad/../x", "0a1b", 0, 1, 3, 8.0),
        Learn(
            "0a1b/learn-fdkt/a",
            "0a1b",
            "fdkt",
            start="fdkt-round-0",
            part=0.5,
            weight=0.0,
            order="generated_first",
        ),
        Evaluate("i", "0a1b", "fdkt", "pooled"),
        Score(
            "i",
            "0a1b",
            "crosslm-round-0",
            LabelledTexts(["a"], [1]),
            8.0,
            1,
            3,
            "votes",
            1e-6,
            True,
        ),
    ):
        assert unpack(pack(message))[0] == message


@pytest.mark.parametrize("message_id", ["", "x" * 513, "a\nb", "\ud800"])
def test_message_ids_are_short_lines(message_id):
    for kind, values in REQUESTS.items():
        with pytest.raises(WireError):
            decode(kind, json.dumps(values | {"message_id": message_id}).encode())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('"weight": NaN', "weight: found nan"),
        ('"weight": -1', "weight: found -1"),
        ('"part": 0', "part: found 0"),
        ('"part": Infinity', "part: found inf"),
        ('"order": "both"', "order: found 'both'; allowed: together, generated_first"),
        ('"scope": "all"', "scope: found 'all'; allowed: own, pooled"),
        (f'"seed": {"1" * 5000}', "unreadable"),
        (f'"data": {"[" * 100_000}{"]" * 100_000}', "unreadable"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_runs(change, says):
    with pytest.raises(WireError, match=says):
        decode("Learn", ('{"message_id": "m", "run": "r", "model": "m", ' + change + "}").encode())


def test_scores_are_asked_for_with_an_epsilon_and_a_known_protection():
    score = REQUESTS["Score"]
    assert (
        decode("Score", json.dumps(score).encode()).feedback,
        decode("Score", json.dumps(score).encode()).counterfactual,
    ) == (
        "none",
        False,
    )
    with pytest.raises(
        WireError, match="feedback: found 'laplace'; allowed: none, votes, gaussian"
    ):
        decode("Score", json.dumps(score | {"feedback": "laplace"}).encode())
    for key in ("epsilon", "data", "model"):
        with pytest.raises(WireError, match=key):
            decode(
                "Score",
                json.dumps({name: value for name, value in score.items() if name != key}).encode(),
            )


def test_a_message_that_is_too_large_is_not_parsed(monkeypatch):
    blob = encode(Learn("m", "r", "m", LabelledTexts(["x" * 100], [0])))
    monkeypatch.setattr(codec, "LARGEST", len(blob))
    assert len(decode("Learn", blob).data) == 1
    monkeypatch.setattr(codec, "LARGEST", len(blob) - 1)
    with pytest.raises(
        WireError, match=f"found {len(blob)} bytes; allowed: at most {len(blob) - 1}"
    ):
        decode("Learn", blob)
