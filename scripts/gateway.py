"""`fedduet gateway`: serve the LLM over HTTP so that sites may answer questions together with
it."""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedduet.scripts.launching.environment import leave, prepare

prepare()

import yaml  # noqa: E402
from fedduet.conf.check import ConfigError, check  # noqa: E402

from fedduet import conf  # noqa: E402

LIMITS = "gateway."


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="fedduet gateway",
        description=__doc__,
        epilog=(
            "TLS: put a reverse proxy in front; keys and questions must not travel in the clear."
        ),
    )
    made.add_argument(
        "overrides",
        nargs="*",
        help="which LLM, e.g. llm.path=DIR, and limits, e.g. gateway.requests_per_minute=60",
    )
    made.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)"
    )
    made.add_argument("--port", type=int, default=8080, help="0: any free one")
    who = made.add_mutually_exclusive_group(required=True)
    who.add_argument(
        "--keys", type=Path, help="file of bearer keys, one a line: `name key` or `key`"
    )
    who.add_argument("--key-env", help="NAME of an environment variable with keys in the same form")
    who.add_argument(
        "--no-keys", action="store_true", help="everybody may ask; on a loopback address only"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """0 after the gateway was stopped. Raises ConfigError before any weights are read for what
    cannot work."""
    arguments = parser().parse_args(list(argv))
    import uvicorn
    from fedduet.server.gateway.access import Keys
    from fedduet.server.gateway.app import Gateway, GatewayConfig, gateway_app
    from fedduet.server.llm.config import LLMConfig
    from fedduet.server.llm.load import check_llm, load_llm
    from fedduet.tasks.builtin.standin import resolve

    limits = check(GatewayConfig, _limits(arguments.overrides), "gateway")
    keys = Keys() if arguments.no_keys else _keys(Keys, arguments)
    if arguments.no_keys and not _loopback(arguments.host):
        raise ConfigError(
            f"--no-keys: found --host {arguments.host}; allowed: a loopback address such as"
            " 127.0.0.1, or give --keys"
        )
    config = conf.compose([one for one in arguments.overrides if not one.startswith(LIMITS)])
    llm = check(LLMConfig, config["llm"], "llm")
    if llm.engine != "transformers":
        raise ConfigError(
            f"llm.engine: found {llm.engine}; the gateway serves weights of this machine, allowed:"
            " transformers"
        )
    llm = llm.model_copy(
        update={"path": resolve(str(llm.path)), "name": llm.name or Path(str(llm.path)).name}
    )
    check_llm(llm)
    engine: Any = load_llm(llm)
    app = gateway_app(Gateway(engine, keys, limits))
    print(
        f"{engine.name}: {engine.parameters / 1e6:.1f} M parameters, context {engine.context};"
        " /v1/completions, /v1/models, /health",
        flush=True,
    )
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        log_level="info",
        access_log=False,
        server_header=False,
    )
    return 0


def _limits(overrides: Sequence[str]) -> dict[str, Any]:
    """The `gateway.KEY=VALUE` among the overrides."""
    pairs = (one.removeprefix(LIMITS).partition("=") for one in overrides if one.startswith(LIMITS))
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def _keys(kind: Any, arguments: argparse.Namespace) -> Any:
    if arguments.keys:
        return kind.from_file(arguments.keys.expanduser())
    if not (text := os.environ.get(arguments.key_env)):
        raise ConfigError(
            f"--key-env: the environment variable {arguments.key_env} is not set; export it, one"
            " key a line"
        )
    return kind.read(text, f"--key-env {arguments.key_env}")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def command() -> None:
    """Console entry."""
    try:
        code = main(sys.argv[1:])
    except ConfigError as problem:
        print(f"error: {problem}", file=sys.stderr)
        code = 2
    leave(code)


if __name__ == "__main__":
    command()
