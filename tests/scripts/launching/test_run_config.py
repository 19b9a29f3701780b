"""A configuration is typed once, at the door, and everything that is wrong in it is said at
once."""

import csv
import json

import pytest
from fedduet.clients.vault.config import read_sites
from fedduet.conf.check import ConfigError
from fedduet.conf.sections import AskedPrivacy
from fedduet.scripts.launching.launch import launch
from fedduet.scripts.launching.preflight import preflight
from fedduet.scripts.launching.run_config import read_run
from fedduet.scripts.run import advice
from fedduet.server.config import read_server
from hydra.errors import HydraException

from fedduet import conf


def lines(overrides, **changed):
    with pytest.raises(ConfigError) as found:
        read_run(conf.compose(overrides) | changed)
    return str(found.value).splitlines()


def test_both_sides_read_the_same_part_of_what_travels(overrides, tmp_path):
    run = read_run(conf.compose([*overrides, "privacy.epsilon=3.5", "seed=4"]))
    travelled = conf.from_run_config({"config": conf.dump(run.plain)})
    server, sites = read_server(travelled), read_sites(travelled)
    assert (server.seed, sites.seed, run.seed) == (4, 4, 4)
    assert server.privacy == AskedPrivacy(epsilon=3.5) and sites.privacy.epsilon == 3.5
    assert server.folder == sites.folder == run.folder == tmp_path / "run"
    assert sites.state_folder == tmp_path / "run" / "sites"
    assert server.strategy == run.server.strategy and server.llm == run.server.llm
    assert (sites.slm, sites.generator, sites.answers) == (
        run.sites.slm,
        run.sites.generator,
        run.sites.answers,
    )


def test_everything_wrong_is_said_at_once_and_once(overrides):
    wrong = ["seed=1.5", "privacy.epsilon=0", "slm.epochs=0", "strategy.rounds=0"]
    wrong += ["federation.phase_timeout=0", "tracking.to=[wandbb]", "strategy.curate.group_size=0"]
    keys = [line.partition(": ")[0] for line in lines([*overrides, *wrong])]
    # the policy repeats the run's epsilon and is not complained of besides; the strategy's own
    # section comes before what the server reads in it
    assert sorted(keys) == sorted(
        ["seed", "federation.phase_timeout", "strategy.rounds", "privacy.epsilon", "slm.epochs",
         "tracking.to"]
    )  # fmt: skip
    sections = ["strategy.curate.group_size=0", "strategy.augment.per_label=0"]
    found = lines([*overrides, *sections])
    assert [line.partition(": ")[0] for line in found] == [one.split("=")[0] for one in sections]


def test_a_bad_data_set_is_told_beside_a_bad_key_and_every_site_of_it(overrides, tmp_path):
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["text", "label", "domain"])
        for domain in ("coffee", "tents"):  # all of one label
            rows.writerows([f"text {n} of {domain}", 0, domain] for n in range(40))
    found = lines([*overrides, f"task.path={file}", "task.test_path=null", "slm.epochs=0"])
    assert sum("coffee" in line for line in found) == sum("tents" in line for line in found) == 1
    assert any(line.startswith("slm.epochs: found 0") for line in found)


@pytest.mark.parametrize("value", [1.5, "3", True, None])
def test_a_seed_is_a_whole_number(overrides, value):
    (line,) = lines(overrides, seed=value)
    assert line.startswith(f"seed: found {value!r}")


def test_what_a_file_leaves_open_has_to_be_set(overrides, tmp_path):
    endpoint = [one for one in overrides if not one.startswith("llm")]
    assert lines([*endpoint, "llm=openai"]) == ["llm.model: not set; pass llm.model=..."]
    with pytest.raises(ConfigError, match=r"^llm\.path: not set; pass llm\.path=\.\.\.$"):
        conf.compose(["llm=transformers"])  # other keys take their value from it
    with pytest.raises(ConfigError, match=r"llm\.model: not set"):
        launch(conf.compose([*endpoint, "llm=openai"]))
    assert not (tmp_path / "run").exists()  # nothing was written, nothing spent


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_run_folder_is_no_file(overrides, tmp_path, below):
    file = tmp_path / "notes"
    file.write_text("mine")
    (line,) = lines([*overrides, f"run.folder={file}{below}"])
    assert line == f"run.folder: found {file}{below}, and {file} is a file; allowed: a folder"
    assert file.read_text() == "mine"


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_rows_of_different_people_are_not_mixed_in_silence(overrides, partition):
    found = lines([*overrides, f"task.partition={partition}", "task.clients=2"])
    assert len(found) == 1 and "client_column: found 'domain'" in found[0]
    assert f"partition={partition}, which deals rows out" in found[0]


def test_an_unknown_section_is_named(overrides):
    config = conf.compose(overrides)
    assert lines(overrides, privcy=config["privacy"]) == [
        "privcy: unknown key; did you mean privacy?"
    ]


def test_odd_names_of_clients_are_quoted_and_the_error_says_how():
    with pytest.raises(HydraException) as found:
        conf.compose(["task.clients=[St. Mary,südklinik]"])
    said = advice(str(found.value))
    assert said.startswith("task.clients=[St. Mary,südklinik] cannot be read; ")
    example = said.partition("'")[2].rpartition("'")[0]  # as it says, so it works
    assert conf.compose([example])["task"]["clients"] == ["St. Mary", "südklinik"]


def test_a_run_config_of_plain_json_is_enough(overrides):
    config = json.loads(json.dumps(conf.compose(overrides)))
    del config["tracking"]
    assert preflight(read_run(config)) == ("coffee", "tents")
