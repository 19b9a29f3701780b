"""Where the clients run: which Ray a simulation uses, and what is said of one that is not there."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from fedduet.conf.check import ConfigError, check
from fedduet.scripts.launching.federation import FederationConfig, check_ray, ray_backend

from fedduet import conf

ROOT = Path(__file__).parents[3]
OFF = (
    "strategy.baselines={local: true, dp_only: false, zero_shot: false, fedavg: false, pooled:"
    " false}"
)


def federation(address):
    return check(
        FederationConfig,
        conf.compose([f"federation.ray_address={address}"])["federation"],
        "federation",
    )


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("address", ["cluster", "ray://head:10001", "head:port", "a b:6379"])
def test_an_address_that_is_none_is_named(address):
    with pytest.raises(
        ConfigError, match=r"federation\.ray_address: found .*allowed: null .*auto, or HOST:PORT"
    ):
        federation(f"'{address}'")


def test_a_head_that_does_not_answer_is_found_before_anything_is_loaded():
    with pytest.raises(ConfigError, match=r"nothing answers at 127\.0\.0\.1:"):
        check_ray(federation(f"'127.0.0.1:{free_port()}'"))
    check_ray(federation("null"))


def test_the_address_is_what_flower_gives_to_ray_init(monkeypatch):
    import ray
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

    seen = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **settings: seen.update(settings))
    RayBackend(ray_backend(federation("'head:6379'")))
    # a standing Ray refuses a wish for CPUs
    assert seen["address"] == "head:6379" and "num_cpus" not in seen
    seen.clear()
    RayBackend(ray_backend(federation("null")))
    assert "address" not in seen


@pytest.mark.ray
def test_a_run_on_a_standing_ray_leaves_it_standing(overrides, tmp_path):
    temporary = tempfile.mkdtemp(prefix="ray")  # short: sockets lie in it
    port = free_port()
    ray = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=1",
        "--include-dashboard=false",
    ]
    ray += [
        f"--temp-dir={temporary}",
        "--block",
        "--disable-usage-stats",
        "--object-store-memory=100000000",
    ]
    with (tmp_path / "ray.log").open("w") as log:
        head = subprocess.Popen(ray, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (tmp_path / "ray.log").read_text():
            assert head.poll() is None and time.monotonic() < deadline, (
                tmp_path / "ray.log"
            ).read_text()
            time.sleep(0.3)
        common = [entry for entry in overrides if not entry.startswith("federation")]
        command = [
            sys.executable,
            "-m",
            "fedduet.scripts.run",
            *common,
            OFF,
            f"federation.ray_address='127.0.0.1:{port}'",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert head.poll() is None
        session = next(Path(temporary).glob("session_2*"))
        assert any(
            "ClientAppActor" in file.read_text(errors="ignore")
            for file in (session / "logs").glob("worker-*.out")
        )
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(30)
        shutil.rmtree(temporary, ignore_errors=True)
