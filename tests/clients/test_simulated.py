"""Simulated sites: each in a folder of its own, whatever its name, and the upper bound in none of
theirs."""

from pathlib import Path

import pytest
from fedduet.clients.simulated import POOLED_FOLDER, simulated_vault, site_folder
from flwr.app import Context, RecordDict

from fedduet import conf


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc", "..", ".", "", "a/b", "_pooled", "a\nb", "x" * 65, "Grüße", ".hidden"],
)
def test_a_site_whose_name_is_no_folder_name_gets_one(name):
    folder = site_folder(name)
    assert folder.startswith("site-") and len(Path("sites", folder).parts) == 2
    assert folder != site_folder(name + "x")
    assert site_folder("St. Anna's").startswith("site-St-Anna-s-")  # a person finds it
    assert (
        site_folder("coffee") == "coffee" and site_folder("camera_photo-2.1") == "camera_photo-2.1"
    )


def test_a_client_called_pooled_does_not_share_the_upper_bounds_folder(overrides, tmp_path):
    rows = ["text,label,domain"] + [
        f"text {i},{i % 2},{name}" for name in ("pooled", "../tents") for i in range(40)
    ]
    (tmp_path / "odd.csv").write_text("\n".join(rows) + "\n")
    data = [f"task.path={tmp_path}/odd.csv", "task.test_path=null", "task.clients=null"]
    config = {
        "config": conf.dump(
            conf.compose([*overrides, *data, f"federation.state_folder={tmp_path}/s"])
        )
    }

    def vault(partition, pooled=False):
        return simulated_vault(
            Context(1, partition + 1, {"partition-id": partition}, RecordDict(), config), pooled
        )

    folders = [vault(0).config.folder, vault(1).config.folder, vault(0, pooled=True).config.folder]
    assert [vault(0).config.client, vault(1).config.client] == ["../tents", "pooled"]
    assert folders == [
        tmp_path / "s" / site_folder("../tents"),
        tmp_path / "s" / "pooled",
        tmp_path / "s" / POOLED_FOLDER,
    ]
