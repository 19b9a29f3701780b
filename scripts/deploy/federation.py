"""A federation of real processes on one machine: SuperLink with TLS and node keys, SuperNodes and
vaults, stopped by process id."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fedduet.scripts.deploy.keys import make_keys
from fedduet.scripts.deploy.namespaces import Namespaces
from fedduet.scripts.launching.environment import SETTINGS

from fedduet import conf

SITES = ("coffee", "laptops", "tents")
REPOSITORY = conf.FOLDER.parent
BIN = Path(sys.executable).parent


class Stopped(RuntimeError):
    """What the demo found wrong, in a sentence."""


class Processes:
    """What was started, each with its log; ended by process id."""

    def __init__(self, folder: Path, flwr_home: Path) -> None:
        self._logs, self._home = folder, flwr_home
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {}
        self._logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start `command`; its output goes to NAME.log."""
        home = self._home / name
        home.mkdir(parents=True, exist_ok=True)
        log = (self._logs / f"{name}.log").open("ab")
        env = (
            os.environ | SETTINGS | {"FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
        )
        process = subprocess.Popen(
            list(command), stdout=log, stderr=log, env=env, cwd=REPOSITORY, start_new_session=True
        )
        self._running[name], self._commands[name] = process, list(command)
        return process

    def pid(self, name: str) -> int:
        """Of a process that runs."""
        return self._running[name].pid

    def restart(self, name: str, pause: float) -> None:
        """SIGKILL one process and what it started, and start it again after `pause` seconds."""
        process = self._running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(pause)
        self.start(name, self._commands[name])

    def alive(self) -> None:
        """Raises Stopped for a process that ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise Stopped(
                    f"{name} ended with {process.returncode}; see {self._logs}/{name}.log"
                )

    def wait(self, ready: Any, what: str, seconds: float) -> None:
        """Until `ready()`. Raises Stopped when that takes longer, or a process ended."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.alive()
            if time.monotonic() > deadline:
                raise Stopped(f"{what} did not come within {seconds:g} s; see {self._logs}")
            time.sleep(0.1)

    def stop(self, name: str) -> None:
        """End one process and what it started."""
        process = self._running.pop(name)
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, sign)
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left behind

    def stop_all(self) -> None:
        """The last started first."""
        for name in list(self._running)[::-1]:
            self.stop(name)


class Federation:
    """The processes of one deployment under `folder`; with `namespaces`, every site in a network of
    its own."""

    def __init__(self, folder: Path, namespaces: Namespaces | None = None) -> None:
        self.namespaces = namespaces
        self.folder, self.keys, self.port = folder, folder / "keys", free_port()
        self.short = Path(tempfile.mkdtemp(prefix="fedduet-"))  # sockets have short paths
        self.processes = Processes(folder / "logs", folder / "flwr")

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *_: Any) -> None:
        self.processes.stop_all()
        shutil.rmtree(self.short, ignore_errors=True)

    def start(self, config: Mapping[str, Any]) -> None:
        """Keys, data, vaults, SuperLink, registered SuperNodes."""
        apart = self.namespaces
        make_keys(
            self.keys,
            ["127.0.0.1", "localhost", *(apart.hosts.values() if apart else ())],
            [*SITES, "stranger"],
        )
        for site in SITES:
            file = self.folder / "sites" / site / "site.yaml"
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.write_text(yaml.safe_dump(site_file(config, site, file.parent, self.socket(site))))
            vault = [str(BIN / "fedduet-vault"), "--config", str(file)]
            self.processes.start(f"vault-{site}", apart.without_network(vault) if apart else vault)
        for site in SITES:
            self.processes.wait(
                lambda site=site: self.socket(site).exists(), f"the vault of {site}", 90
            )
        tls = [
            "--ssl-ca-certfile",
            f"{self.keys}/ca.crt",
            "--ssl-certfile",
            f"{self.keys}/server.pem",
            "--ssl-keyfile",
            f"{self.keys}/server.key",
        ]
        where = [
            "--host",
            "0.0.0.0" if apart else "127.0.0.1",
            "--port",
            str(self.port),
            "--database",
            f"{self.folder}/superlink.db",
        ]
        self.processes.start(
            "superlink", [str(BIN / "flower-superlink"), *tls, *where, "--enable-supernode-auth"]
        )
        self.processes.wait(self.answers, "the SuperLink", 60)
        home = self.folder / "flwr" / "cli"
        home.mkdir(parents=True, exist_ok=True)
        link = {"address": f"127.0.0.1:{self.port}", "root-certificates": f"{self.keys}/ca.crt"}
        lines = [
            "[superlink]",
            'default = "demo"',
            "[superlink.demo]",
            *(f'{key} = "{value}"' for key, value in link.items()),
        ]
        (home / "config.toml").write_text("\n".join(lines) + "\n")
        for site in SITES:
            self.flwr("supernode", "register", f"{self.keys}/{site}.pub", "demo", "--name", site)
            self.processes.start(
                f"supernode-{site}",
                self.supernode(site, ["--root-certificates", f"{self.keys}/ca.crt"], site),
            )

    def socket(self, site: str) -> Path:
        """Of a site's vault."""
        return self.short / site / "vault.sock"

    def supernode(self, site: str, trust: Sequence[str], network: str = SITES[0]) -> list[str]:
        """The command of a SuperNode whose courier knows the site's vault, from the `network` of a
        site."""
        node = f"vault='unix://{self.socket(site)}'"
        keys = ["--auth-supernode-private-key", f"{self.keys}/{site}"]
        link = self.namespaces.hosts[network] if self.namespaces else "127.0.0.1"
        command = [
            str(BIN / "flower-supernode"),
            "--superlink",
            f"{link}:{self.port}",
            *trust,
            *keys,
            "--node-config",
            node,
            "--host",
            "127.0.0.1",
            "--port",
            str(free_port()),
        ]
        return self.namespaces.inside(network, command) if self.namespaces else command

    def check_networks(self) -> None:
        """Raises Stopped when a site does not reach the SuperLink, or reaches another network or
        another service of its machine."""
        if not self.namespaces:
            return
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            for site, neighbour in zip(SITES, [*SITES[1:], SITES[0]], strict=True):
                if not self.namespaces.reaches(site, self.namespaces.hosts[site], self.port):
                    raise Stopped(f"{site} does not reach the SuperLink from its namespace")
                beyond = [
                    ("127.0.0.1", other.getsockname()[1]),
                    (self.namespaces.hosts[neighbour], self.port),
                ]
                if found := [
                    host for host, port in beyond if self.namespaces.reaches(site, host, port)
                ]:
                    raise Stopped(f"{site} reaches {found[0]} from its namespace")

    def flwr(self, *arguments: str) -> Any:
        """What a `flwr` command prints as JSON. Raises Stopped when it fails."""
        env = (
            os.environ
            | SETTINGS
            | {
                "FLWR_HOME": str(self.folder / "flwr" / "cli"),
                "PATH": f"{BIN}:{os.environ['PATH']}",
            }
        )
        command = [str(BIN / "flwr"), *arguments, "--format", "json"]
        done = subprocess.run(
            command,
            env=env,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        place = done.stdout.find("{")
        if done.returncode or place < 0:
            raise Stopped(
                f"flwr {' '.join(arguments[:2])} failed:"
                f" {(done.stdout + done.stderr).strip()[-400:]}"
            )
        return json.loads(done.stdout[place:])

    def submit(self, config: Mapping[str, Any]) -> str:
        """Start a run and return its id. Raises Stopped."""
        file = self.folder / "run-config.toml"
        file.write_text(f"config = {json.dumps(conf.dump(config))}\n")
        submitted = self.flwr("run", str(REPOSITORY), "demo", "--run-config", str(file))
        return str(submitted.get("run-id") or submitted.get("run_id"))

    def ended(self, run_id: str, seconds: float) -> str:
        """How a run ended, or what it is after `seconds`. Raises Stopped when a process ended by
        itself."""
        deadline, status = time.monotonic() + seconds, ""
        while time.monotonic() < deadline and not status.startswith("finished"):
            time.sleep(2)
            self.processes.alive()
            status = str(self.flwr("ls", "demo", "--run-id", run_id)["runs"][0]["status"])
        return status

    def run(self, config: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Submit a run, wait for its end, and return its summary. Raises Stopped when it did not
        complete."""
        run_id = self.submit(config)
        status, summary = (
            self.ended(run_id, seconds),
            Path(config["run"]["folder"]) / "summary.json",
        )
        if status != "finished:completed" or not summary.is_file():
            raise Stopped(f"run {run_id} is {status!r}; see {self.folder}/logs/superlink.log")
        return json.loads(summary.read_text())

    def answers(self) -> bool:
        """Whether the SuperLink accepts connections."""
        return listening(self.port)

    def turned_away(self, name: str, command: Sequence[str]) -> None:
        """Raises Stopped when a node that must not get in stays connected."""
        process = self.processes.start(name, command)
        deadline = time.monotonic() + 40
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        online = [
            node
            for node in self.flwr("supernode", "ls", "demo").get("nodes", [])
            if node.get("status") == "online"
        ]
        ended = process.poll()
        self.processes.stop(name)
        if len(online) != len(SITES) or ended == 0:
            raise Stopped(
                f"{name} was not turned away: {len(online)} nodes are online, exit {ended}"
            )


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def site_file(config: Mapping[str, Any], site: str, folder: Path, place: Path) -> dict[str, Any]:
    """The site's own YAML: what the run assumes of sites, but written down here, by the site."""
    from fedduet.tasks.builtin.standin import resolve

    policy = dict(config["privacy"]["policy"]) | {"share_scores": "private", "epsilon_total": 8.0}
    found = {
        "client": site,
        "folder": str(folder / "state"),
        "socket": str(place),
        "task": dict(config["task"]),
        "policy": policy,
    }
    found |= {
        name: config[name] | {"path": resolve(config[name]["path"])}
        for name in ("slm", "generator")
    }
    # only so that the run can be compared with one in process; nothing is protected then
    policy["allow_unprotected"] = True
    return found | {"seed": config["seed"], "seeded_noise": True}
