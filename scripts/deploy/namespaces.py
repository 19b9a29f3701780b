"""Network namespaces for the sites of the demo: each has an address and one neighbour, the
SuperLink; a vault has no network at all.

Needs root and iproute2; what is made here is removed here. A site's namespace has a link of two
addresses to the host and no route beyond.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

PROBE = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)"


class Namespaces:
    """`names[site]` is the namespace of a site's SuperNode, `hosts[site]` the address that the
    SuperLink has for it."""

    def __init__(self, sites: Sequence[str]) -> None:
        self.names = {site: f"fd{os.getpid()}-{number}" for number, site in enumerate(sites)}
        self.hosts = {site: f"10.231.{number}.1" for number, site in enumerate(sites)}
        self.sites = {site: f"10.231.{number}.2" for number, site in enumerate(sites)}

    @staticmethod
    def available() -> bool:
        """Whether this machine lets us make one: tried out."""
        if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
            return False
        try:
            with Namespaces(("try",)):
                return True
        except subprocess.CalledProcessError:
            return False

    def __enter__(self) -> Namespaces:
        try:
            for site, name in self.names.items():
                _ip("netns", "add", name)
                _ip("link", "add", name, "type", "veth", "peer", "name", "site0", "netns", name)
                _ip("addr", "add", f"{self.hosts[site]}/30", "dev", name)
                _ip("link", "set", name, "up")
                _ip("-n", name, "addr", "add", f"{self.sites[site]}/30", "dev", "site0")
                _ip("-n", name, "link", "set", "site0", "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names.values():
            for kind in (["link", "del", name], ["netns", "del", name]):
                subprocess.run(["ip", *kind], capture_output=True, check=False)

    def inside(self, site: str, command: Sequence[str]) -> list[str]:
        """The command in the site's namespace."""
        return ["ip", "netns", "exec", self.names[site], *command]

    @staticmethod
    def without_network(command: Sequence[str]) -> list[str]:
        """The command in a namespace of its own that has no link."""
        return ["unshare", "--net", *command]

    def reaches(self, site: str, host: str, port: int) -> bool:
        """Whether a process of the site gets a connection there."""
        command = self.inside(site, [sys.executable, "-c", PROBE, host, str(port)])
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=True)
