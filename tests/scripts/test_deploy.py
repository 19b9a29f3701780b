"""Keys and certificates of a deployment, its units, and what the demo's sites are told."""

import configparser
import ssl
import stat
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from fedduet.clients.vault.service import read_site
from fedduet.scripts.deploy.demo import configured, write_data
from fedduet.scripts.deploy.federation import SITES, site_file
from fedduet.scripts.deploy.keys import main, make_keys

from fedduet import conf


def test_keys_and_certificates_fit_together_and_stay(tmp_path):
    out = tmp_path / "keys"
    assert (
        main(["--out", str(out), "--host", "127.0.0.1", "--host", "localhost", "--node", "north"])
        == 0
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(out / "server.pem", out / "server.key")
    certificate = x509.load_pem_x509_certificate((out / "server.pem").read_bytes())
    certificate.verify_directly_issued_by(
        x509.load_pem_x509_certificate((out / "ca.crt").read_bytes())
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert (
        names.get_values_for_type(x509.DNSName) == ["localhost"]
        and str(names.get_values_for_type(x509.IPAddress)[0]) == "127.0.0.1"
    )
    assert load_ssh_private_key(
        (out / "north").read_bytes(), None
    ).public_key() == load_ssh_public_key((out / "north.pub").read_bytes())
    assert {
        stat.S_IMODE((out / name).stat().st_mode) for name in ("ca.key", "server.key", "north")
    } == {0o600}
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    make_keys(out, ["localhost"], ["north", "south"])  # a site that comes later
    assert {name: (out / name).read_bytes() for name in before} == before and (
        out / "south.pub"
    ).is_file()


def test_a_superlink_needs_a_name(tmp_path, capsys):
    assert main(["--out", str(tmp_path)]) == 2 and "--host: found none" in capsys.readouterr().err


def test_a_tls_client_that_trusts_the_authority_gets_in_and_no_other(tmp_path):
    make_keys(tmp_path, ["localhost"], [])
    make_keys(tmp_path / "other", ["localhost"], [])
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")

    def shake(authority, name="localhost"):
        client = ssl.create_default_context(cafile=authority)
        ends = [ssl.MemoryBIO() for _ in range(2)]
        sides = [
            client.wrap_bio(ends[0], ends[1], server_hostname=name),
            server.wrap_bio(ends[1], ends[0], server_side=True),
        ]
        for _ in range(6):
            for side in sides:
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        return sides[0].version()

    assert shake(tmp_path / "ca.crt") == "TLSv1.3"
    for authority, name in (
        (tmp_path / "other" / "ca.crt", "localhost"),
        (tmp_path / "ca.crt", "elsewhere"),
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(authority, name)


@pytest.mark.parametrize(
    "unit",
    sorted((conf.FOLDER.parent / "scripts" / "deploy" / "systemd").glob("*.service")),
    ids=lambda file: file.stem,
)
def test_units_run_commands_that_exist_as_another_user_than_root(unit):
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str
    found.read(unit)
    command = found["Service"]["ExecStart"].split()[0]
    assert command.rpartition("/")[2] in ("fedduet-vault", "flower-supernode", "flower-superlink")
    assert (
        found["Service"]["User"] != "root"
        and found["Service"]["NoNewPrivileges"] == "yes"
        and found["Install"]["WantedBy"]
    )


def test_containers_keep_data_from_the_network_and_the_network_from_data():
    folder = conf.FOLDER.parent / "scripts" / "deploy" / "containers"
    cloud, site = (
        yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("cloud", "site")
    )
    vault, courier = site["services"]["vault"], site["services"]["supernode"]
    assert (
        vault["network_mode"] == "none"
        and "network_mode" not in courier
        and vault["user"] != courier["user"]
    )
    places = {
        name: {volume.split(":")[1] for volume in service["volumes"]}
        for name, service in site["services"].items()
    }
    assert places["supernode"] == {"/keys", "/run/fedduet"} and places["vault"] & places[
        "supernode"
    ] == {"/run/fedduet"}
    assert {"/srv/private", "/var/lib/fedduet"} < places["vault"]
    for service in [*cloud["services"].values(), *site["services"].values()]:
        command = service["command"]
        name = command.split()[0] if isinstance(command, str) else command[0]
        assert (Path(sys.executable).parent / name).is_file()
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == [
            "no-new-privileges:true"
        ]
        named = {volume.split(":")[0] for volume in service["volumes"] if volume[0].isalpha()}
        assert named <= set(cloud["volumes"]) | set(site["volumes"])


def test_the_sites_of_the_demo_are_real_ones(tmp_path, tiny_model):
    files = write_data(tmp_path / "data")
    config = configured(
        tmp_path, "fdkt", files, [f"slm.path={tiny_model}", f"generator.path={tiny_model}"]
    )
    for site in SITES:
        (tmp_path / f"{site}.yaml").write_text(
            yaml.safe_dump(site_file(config, site, tmp_path / site, tmp_path / "s"))
        )
        _, opened = read_site(tmp_path / f"{site}.yaml")
        assert (
            opened.client == site
            and opened.policy.share_scores == "private"
            and opened.policy.epsilon_total == 8.0
        )
