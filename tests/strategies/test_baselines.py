"""Methods of one run are compared fairly: they train alike, and a baseline gets what was asked."""

from __future__ import annotations

from fedduet.scripts.launching.launch import launch
from fedduet.strategies.run.moves import Moves

from fedduet import conf

OTHERS = "strategy.baselines={fdkt_no_judge: true, fdkt_other_site: true}"


def test_every_method_trains_alike_and_dp_only_has_as_many_texts(
    overrides, private_csv, monkeypatch
):
    asked, synthesize = [], Moves.synthesize
    monkeypatch.setattr(
        Moves,
        "synthesize",
        lambda self, round, rounds, *number: (
            asked.append(number),
            synthesize(self, round, rounds, *number),
        )[1],
    )
    public = private_csv / "test.csv"  # some labelled rows; whose does not matter here
    longer = [OTHERS, f"task.public_path={public}", "strategy.fedavg_rounds=3", "slm.epochs=3"]
    summary = launch(conf.compose([*overrides, *longer, "slm.max_steps=100", "seed=1"]))
    trained = summary["training"]
    steps = 12  # batches of 8, 3 passes over 32 rows
    for model in ("local", "fdkt", "zero_shot", "dp_only", "public", "fdkt_no_judge", "fedavg"):
        assert (trained[model]["steps"], trained[model]["private_passes"]) == (steps, 3.0), model
        assert trained[model]["checkpoint"] == "last"
    # of two sites' rows, twice the steps: the same passes
    assert (trained["pooled"]["steps"], trained["pooled"]["private_passes"]) == (2 * steps, 3.0)
    assert trained["local"]["generated_passes"] == trained["fedavg"]["generated_passes"] == 0
    assert asked == [(6, 2)]  # six that the LLM is shown, and as many more as it writes
    assert "fdkt_other_site" in summary["accuracy"]
