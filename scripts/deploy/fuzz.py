"""`python -m fedduet.scripts.deploy.fuzz [N]`: malformed requests against a vault and a gateway, in
processes of their own; 10,000 each by default.

Ends with 0 only when both still answer, none of the requests got anything but a refusal, their
memory did not grow by more than 64 MiB, and a body of 2 GiB was turned away by both without being
read.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml
from fedduet.scripts.deploy.demo import configured, write_data
from fedduet.scripts.deploy.federation import (
    BIN,
    SITES,
    Processes,
    Stopped,
    free_port,
    listening,
    site_file,
)
from fedduet.wire.body import to_body
from fedduet.wire.messages import Evaluate, Introduce, LabelledTexts, Score

GROWTH = 64 * 2**20  # bytes a process may grow by
KEY = "fuzz-key-of-thirty-two-characters!"


def vault_bodies(draws: random.Random) -> Iterator[bytes]:
    """Noise, valid messages with bytes changed, cut or repeated, and lengths that lie; none of them
    asks for a release that is allowed."""
    texts = LabelledTexts(["a text"], [0])
    whole = [
        to_body(one)
        for one in (
            Introduce("i", "run"),
            Evaluate("e", "run", "no-such"),
            Score("s", "run", "x", texts, 8.0),
        )
    ]
    while True:
        body = draws.choice(whole)
        kind = draws.randrange(5)
        if kind == 0:
            yield draws.randbytes(draws.randrange(400))
        elif kind == 1:
            yield body[: draws.randrange(len(body))]
        elif kind == 2:
            yield body + draws.randbytes(draws.randrange(1, 50))
        elif kind == 3:
            head, _, rest = body.partition(b"\n")
            yield head.split()[0] + b" %d\n" % draws.choice([-1, 0, 2**31, 2**63, 10**30]) + rest
        else:
            places = {draws.randrange(len(body)) for _ in range(draws.randrange(1, 8))}
            yield bytes(
                draws.randrange(256) if i in places else byte for i, byte in enumerate(body)
            )


def gateway_bodies(draws: random.Random) -> Iterator[bytes]:
    """Noise, JSON that is no object, and completion requests with values of wrong kinds and
    sizes."""
    values: list[Callable[[], Any]] = [
        lambda: None,
        lambda: -1,
        lambda: 1e308,
        lambda: float("nan"),
        lambda: "",
        lambda: "x" * 2000,
        lambda: [],
        lambda: {},
        lambda: [[1, 2], "a"],
        lambda: True,
        lambda: 2**70,
        lambda: "\ud800",
        lambda: [None] * 50,
        lambda: {"a": {"b": [1]}},
    ]
    fields = (
        "model",
        "prompt",
        "max_tokens",
        "temperature",
        "top_p",
        "stop",
        "seed",
        "logprobs",
        "echo",
        "stream",
        "n",
        "nonsense",
    )
    while True:
        kind = draws.randrange(4)
        if kind == 0:
            yield draws.randbytes(draws.randrange(400))
        elif kind == 1:
            yield json.dumps(draws.choice(values)()).encode()
        elif kind == 2:
            yield b"[" * draws.randrange(1, 5000)
        else:
            body = {
                name: draws.choice(values)()
                for name in draws.sample(fields, draws.randrange(1, len(fields)))
            }
            yield json.dumps(
                body | {"max_tokens": draws.choice([-5, "many", 10**9, None, []])}
            ).encode()


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def send(client: httpx.Client, path: str, bodies: Iterator[bytes], number: int) -> Counter[int]:
    """How often each status came back. Raises Stopped when the connection broke without an
    answer."""
    codes: Counter[int] = Counter()
    for i in range(number):
        body = next(bodies)
        try:
            codes[client.post(path, content=body).status_code] += 1
        except httpx.HTTPError as failure:
            raise Stopped(f"request {i} got no answer ({failure!r}): {body[:80]!r}") from None
    return codes


def oversize(family: int, address: Any, path: str, headers: str = "") -> int:
    """The status that a request of 2 GiB gets after its first megabyte."""
    with socket.socket(family) as link:
        link.settimeout(20)
        link.connect(address)
        link.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {2**31}\r\n\r\n".encode()
        )
        try:
            for _ in range(16):
                link.sendall(bytes(65536))
        except OSError:
            pass  # turned away while sending
        return int(link.recv(4096).split()[1])


def attacked(
    name: str,
    pid: int,
    client: httpx.Client,
    path: str,
    bodies: Iterator[bytes],
    number: int,
    big: Callable[[], int],
) -> str:
    """What came of it, in a line. Raises Stopped."""
    send(client, path, bodies, min(500, number))  # what a server allocates once
    before = resident(pid)
    codes = send(client, path, bodies, number)
    grown, status = resident(pid) - before, big()
    if any(code >= 500 for code in codes):
        raise Stopped(f"{name}: an internal error among {dict(codes)}")
    if status != 413:
        raise Stopped(f"{name}: a request of 2 GiB was answered {status}")
    if client.get("/health").status_code != 200:
        raise Stopped(f"{name} does not answer any more")
    if grown > GROWTH:
        raise Stopped(f"{name}: memory grew by {grown / 2**20:.0f} MiB")
    return (
        f"{name}: {number} malformed requests, answered {dict(sorted(codes.items()))}; memory"
        f" {grown / 2**20:+.1f} MiB; 2 GiB: {status}"
    )


def main(argv: Sequence[str] = ()) -> int:
    """Prints a line for each of the two; 1 for what did not hold."""
    number, draws = int(argv[0]) if argv else 10_000, random.Random(0)
    folder = Path("runs/fuzz").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    files, port, short = (
        write_data(folder / "data"),
        free_port(),
        Path(tempfile.mkdtemp(prefix="fedduet-")),
    )
    processes = Processes(folder / "logs", folder / "flwr")
    place, keys = short / "vault.sock", folder / "keys"
    file = folder / "site" / "site.yaml"
    file.parent.mkdir(mode=0o700)
    file.write_text(
        yaml.safe_dump(
            site_file(configured(folder, "run", files, []), SITES[0], file.parent, place)
        )
    )
    keys.write_text(f"fuzz {KEY}\n")
    keys.chmod(0o600)
    try:
        vault = processes.start("vault", [str(BIN / "fedduet-vault"), "--config", str(file)])
        unlimited = ["gateway.requests_per_minute=1000000"]
        gateway = processes.start(
            "gateway",
            [str(BIN / "fedduet-gateway"), "--keys", str(keys), "--port", str(port), *unlimited],
        )
        processes.wait(lambda: place.exists() and listening(port), "the vault and the gateway", 120)
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(place)), base_url="http://vault", timeout=60
        ) as client:
            big = lambda: oversize(socket.AF_UNIX, str(place), "/v1/messages")  # noqa: E731
            print(
                attacked(
                    "vault", vault.pid, client, "/v1/messages", vault_bodies(draws), number, big
                ),
                flush=True,
            )
        bearer = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers=bearer, timeout=60
        ) as client:
            header = f"Authorization: Bearer {KEY}\r\n"
            big = lambda: oversize(socket.AF_INET, ("127.0.0.1", port), "/v1/completions", header)  # noqa: E731
            print(
                attacked(
                    "gateway",
                    gateway.pid,
                    client,
                    "/v1/completions",
                    gateway_bodies(draws),
                    number,
                    big,
                ),
                flush=True,
            )
    except Stopped as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    finally:
        processes.stop_all()
        shutil.rmtree(short, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
