"""Samples and scores of a report, against figures worked out by hand."""

import json

from fedduet.scripts.reporting.texts import _nearest, samples, scores


def write(folder, name, rows):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_nearest_text_is_another_one_of_the_same_site():
    rows = [{"client": "a", "text": "the pan is hot"}]
    among = [
        {"client": "b", "text": "the pan is hot ."},
        {"client": "a", "text": "the pan is hot"},  # itself is no neighbour
        {"client": "a", "text": "rain in the garden"},
        {"client": "a", "text": "The pan is  hot"},
    ]
    (found,) = _nearest(rows, among, "nearest")
    assert found == "nearest (1.00): The pan is  hot"
    (found,) = _nearest(rows, among[:2], "nearest")  # where the site has none, another site's
    assert found.endswith(": the pan is hot .")
    assert _nearest(rows, among[1:2], "nearest") == [""]


def test_scores_of_rounds_are_means_and_tenths(tmp_path):
    assert scores(tmp_path) == ""
    rewards = {0: [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 1: [0.9]}
    rows = [
        {
            "round": number,
            "client": "a",
            "label": 0,
            "reward": reward,
            "accepted": reward >= 0.5,
            "text": f"text {reward}",
        }
        | {"scores": {"a": reward, "b": 1 - reward}}
        for number, values in rewards.items()
        for reward in values
    ]
    write(tmp_path, "feedback", rows)
    page = scores(tmp_path)
    assert (
        "<td>11</td><td>6</td><td>0.500</td><td>0.100 to 0.900</td><td>0.500</td><td>0.500</td>"
        in page
    )
    assert (
        "<td>1</td><td>1</td><td>0.900</td><td>0.900 to 0.900</td><td>0.900</td><td>0.100</td>"
        in page
    )
    said = samples(tmp_path, ["bad", "good"])
    assert (
        "round 0, for a, bad: reward 1.00, accepted" in said
        or "round 1, for a, bad: reward 0.90, accepted" in said
    )
    assert "nearest other text of the LLM" in said
