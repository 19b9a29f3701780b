"""`flower-simulation`: runs the app of a folder on Flower's simulation engine, as the command that
Flower removed in 1.27 did."""

from __future__ import annotations

from fedduet.scripts.launching.environment import leave, prepare

prepare()

import argparse  # noqa: E402  (the environment must be set before Flower and torch are imported)
import importlib  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import sys  # noqa: E402
import tomllib  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from fedduet.conf.check import ConfigError, nearest  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="flower-simulation", description=__doc__)
    made.add_argument(
        "--app", type=Path, default=Path("."), help="folder with the pyproject.toml of the app"
    )
    made.add_argument("--num-supernodes", type=int, required=True, help="virtual clients")
    made.add_argument(
        "--run-config",
        action="append",
        default=[],
        help="'key=value key=value' in TOML, or a TOML file; repeatable",
    )
    made.add_argument(
        "--backend-config",
        default="{}",
        help='JSON for Flower\'s Ray backend, e.g. \'{"client_resources": {"num_cpus": 2}}\'',
    )
    made.add_argument("--verbose", action="store_true", help="show Flower's own log")
    return made


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 only if the run completed; 2 for input that cannot work, 1 for a run that
    failed."""
    from fedduet.scripts.launching.federation import FederationConfig, ray_backend, run_simulation
    from flwr.common.config import flatten_dict, parse_config_args

    arguments = parser().parse_args(argv)
    try:
        app = _flower_section(arguments.app)
        components, known = app["components"], flatten_dict(app.get("config", {}))
        run_config = parse_config_args(arguments.run_config or None)
        for key in run_config:
            if key not in known:
                raise ConfigError(f"--run-config: unknown key {key!r}; {nearest(key, list(known))}")
        backend = ray_backend(FederationConfig(kind="simulation")) | _backend(
            arguments.backend_config
        )
    except (ConfigError, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    if arguments.num_supernodes < 1:
        print(
            f"error: --num-supernodes: found {arguments.num_supernodes}; allowed: at least 1",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(arguments.app.resolve()))
    level = logging.DEBUG if arguments.verbose else logging.INFO
    server_app, client_app = (_load(components[name]) for name in ("serverapp", "clientapp"))
    try:
        run_simulation(
            server_app,
            client_app,
            run_config,
            arguments.num_supernodes,
            backend,
            arguments.app.resolve(),
            level,
        )
    except Exception as failure:  # the run's own failure, whatever it is, is the exit code
        print(f"error: the run failed: {type(failure).__name__}: {failure}", file=sys.stderr)
        return 1
    return 0


def _flower_section(app: Path) -> dict[str, Any]:
    file = app / "pyproject.toml"
    if not file.is_file():
        raise ConfigError(
            f"--app: {app.absolute()} has no pyproject.toml; give the folder of a Flower app"
        )
    try:
        section = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
        return section | {"components": dict(section["components"])}
    except (KeyError, tomllib.TOMLDecodeError) as problem:
        raise ConfigError(f"--app: {file} names no Flower components ({problem})") from None


def _backend(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as problem:
        raise ConfigError(f"--backend-config: not JSON ({problem})") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"--backend-config: found {type(values).__name__}; allowed: a JSON object"
        )
    return values


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def command() -> None:
    """Console entry."""
    leave(main())


if __name__ == "__main__":
    command()
