"""The sections of a run's configuration that server and sites both read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
from fedduet.conf.check import Problems, Section, check


class Top(Section):
    """The keys of a configuration that stand in no section."""

    seed: pydantic.StrictInt = pydantic.Field(
        0, description="Of splits, training, sampling and prompts; never of a real site's DP noise."
    )


class RunSection(Section):
    """Where a run is kept."""

    folder: str | None = pydantic.Field(
        None,
        description=(
            "The run folder, which resumes where it exists; null: a new one under runs/, named by"
            " strategy, task, seed and time."
        ),
    )

    @pydantic.field_validator("folder")
    @classmethod
    def _no_file(cls, value: str | None) -> str | None:
        for place in [] if value is None else [Path(value), *Path(value).parents]:
            if place.is_file():
                raise ValueError(f"found {value}, and {place} is a file; allowed: a folder")
        return value


class FederationConfig(Section):
    """Where the clients run. Times in seconds."""

    kind: Literal["inprocess", "simulation"] = pydantic.Field(
        description="inprocess: server and sites in one process; simulation: Flower's, on Ray."
    )
    cpus_per_client: float = pydantic.Field(
        1.0, gt=0, description="Ray: cores of one client, so that cores / this work at once."
    )
    gpus_per_client: float = pydantic.Field(
        0.0, ge=0, description="Ray: GPUs of one client, or a share of one."
    )
    ray_address: str | None = pydantic.Field(
        None,
        description=(
            "A standing Ray to attach to: auto (on this machine) or HOST:PORT of a cluster's head;"
            " null: one of the run's own."
        ),
    )
    phase_timeout: float = pydantic.Field(
        7200.0, gt=0, description="Seconds that a phase may take; later answers are left out."
    )
    gather_timeout: float = pydantic.Field(
        120.0, gt=0, description="Seconds that all sites may take to introduce themselves."
    )
    minimum_sites: int = pydantic.Field(
        1, ge=1, description="Answers of a phase below which the run ends."
    )
    state_folder: str | None = pydantic.Field(
        None,
        description=(
            "Where simulated sites keep ledger and models; null: in the run folder. The same folder"
            " again: the budget goes on."
        ),
    )

    @pydantic.field_validator("ray_address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value not in (None, "auto") and not re.fullmatch(
            r"[A-Za-z0-9._-]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}", value
        ):
            raise ValueError(
                f"found {value!r}; allowed: null (a Ray of the run's own), auto, or HOST:PORT of a"
                " Ray head"
            )
        return value


class AskedPrivacy(Section):
    """What a run asks of every site's budget; the rest of the section is the simulated sites'
    own."""

    epsilon: float = pydantic.Field(
        description="Of the whole run, all rounds and mechanisms together, for each site."
    )
    delta: float | None = pydantic.Field(
        None, description="Of the same; null: each site's own, min(1e-5, 1 / (10 n))."
    )
    feedback: Literal["none", "votes", "gaussian"] = pydantic.Field(
        "none", description="How scores of generated texts are protected (docs/privacy.md)."
    )

    @pydantic.field_validator("epsilon")
    @classmethod
    def _positive(cls, value: float) -> float:
        if not value > 0:
            raise ValueError(
                f"found {value}; allowed: above 0 (inf needs policy.allow_unprotected)"
            )
        return value

    @pydantic.field_validator("delta")
    @classmethod
    def _probability(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < 1:
            raise ValueError(
                f"found {value}; allowed: above 0, below 1, or null for the site's own"
            )
        return value


def read_top(config: Mapping[str, Any]) -> Top:
    """The keys that stand in no section. Raises ConfigError."""
    return check(Top, {"seed": config["seed"]} if "seed" in config else {}, "")


def read_asked(privacy: Mapping[str, Any]) -> AskedPrivacy:
    """The server's part of the section `privacy`. Raises ConfigError."""
    own = {key: privacy[key] for key in AskedPrivacy.model_fields if key in privacy}
    return check(AskedPrivacy, own, "privacy")


def read_common(
    config: Mapping[str, Any], problems: Problems
) -> tuple[Top | None, RunSection | None, FederationConfig | None]:
    """Seed, run folder and federation, as far as they are right."""
    return (
        problems.of(read_top, config),
        problems.of(check, RunSection, config["run"], "run"),
        problems.of(check, FederationConfig, config["federation"], "federation"),
    )
