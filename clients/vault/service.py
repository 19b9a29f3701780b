"""A site's vault as a service on a Unix domain socket: the site starts it, the server's courier
only ever gets the socket."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fedduet.clients.vault.answering.config import AnswersConfig
from fedduet.clients.vault.config import GeneratorConfig, SiteConfig
from fedduet.clients.vault.dispatch import AnyVault, ask
from fedduet.clients.vault.release.policy import Policy
from fedduet.clients.vault.release.privacy_unit import check_unit
from fedduet.conf.check import ConfigError, Section, check
from fedduet.lm.models.folder import check_model_folder
from fedduet.lm.training.config import SLMConfig
from fedduet.tasks.data.load import check_data
from fedduet.tasks.data.questions import QuestionsConfig, check_task, load_questions, names_of
from fedduet.wire.body import from_body, to_body
from fedduet.wire.codec import LARGEST, WireError
from fedduet.wire.messages import Refused
from starlette.concurrency import run_in_threadpool

BODY = "application/x-fedduet"
MOST = 2 * LARGEST  # bytes of a request: its JSON, and weights as large again [O]


class SiteFile(Section):
    """What a site writes down: whose data, where, with which models, under which policy. Nothing
    from the wire changes any of it."""

    client: str = pydantic.Field(min_length=1)  # public name
    folder: str  # ledger, releases and models; only the site's user should read it
    socket: str
    group_may_connect: bool = False  # the courier runs under another user of the site's group
    task: Mapping[str, Any]
    slm: Mapping[str, Any]
    generator: Mapping[str, Any] | None = None  # of a classification task
    answers: Mapping[str, Any] = {}  # of a task of questions
    policy: Mapping[str, Any] = {}
    seed: int = 0  # of the split into training, validation and test rows
    # true: reproducible noise, to compare runs in tests; releases are then NOT private and say so
    seeded_noise: bool = False


def read_site(file: Path) -> tuple[SiteFile, SiteConfig]:
    """The site's settings, checked: data, model folders, policy. Raises ConfigError before anything
    is served."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as failure:
        raise ConfigError(f"{file}: cannot be read as YAML: {failure}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file}: found {type(values).__name__}; allowed: a mapping with client, folder,"
            " socket, task, slm, generator, policy"
        )
    site = check(SiteFile, values, str(file))
    task = check_task(site.task)
    if site.client not in names_of(task):
        raise ConfigError(
            f"client: found {site.client!r}; the task's data has {', '.join(names_of(task))}"
        )
    slm, policy = check(SLMConfig, site.slm, "slm"), check(Policy, site.policy, "policy")
    check_unit(policy, task)
    check_model_folder(slm.path, "slm.path", causal=isinstance(task, QuestionsConfig))
    folder = Path(site.folder).expanduser()
    if isinstance(task, QuestionsConfig):
        load_questions(task, site.client, site.seed)
        answers = check(AnswersConfig, dict(site.answers), "answers")
        return site, SiteConfig(
            site.client, folder, task, slm, None, policy, site.seed, answers=answers
        )
    if site.generator is None:
        raise ConfigError(
            "generator: missing; needed for a task of kind classification: path, and how it is"
            " trained"
        )
    generator = check(GeneratorConfig, site.generator, "generator")
    check_model_folder(generator.path, "generator.path", causal=True)
    check_data(
        task, site.seed, logical_batch=generator.logical_batch, by_user=policy.unit == "user"
    )
    return site, SiteConfig(
        site.client, folder, task, slm, generator, policy, site.seed, site.seeded_noise
    )


def build_service(vault: AnyVault) -> FastAPI:
    """POST /v1/messages answers one message; GET /health says whether the vault is at work. One
    message at a time."""
    service, busy = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), threading.Lock()

    def work(body: bytes) -> bytes:
        request, arrays = from_body(body)
        if getattr(request, "scope", "own") == "pooled":
            return to_body(
                Refused(
                    "this is a real site; only a simulation has all sites' records together",
                    "policy",
                )
            )
        with busy:
            return to_body(*ask(vault, request, arrays))

    def too_large() -> Response:
        return JSONResponse(
            {"error": f"found more than {MOST} bytes; allowed: at most so many"},
            413,
            {"connection": "close"},
        )

    @service.get("/health")
    def health() -> dict[str, Any]:
        return {"client": vault.config.client, "busy": busy.locked()}

    @service.post("/v1/messages")
    async def messages(request: Request) -> Response:
        body, on_progress = bytearray(), request.headers.get("content-length", "0")
        if (
            len(on_progress) > 15 or int(on_progress) > MOST
        ):  # the server has seen to it that it is a number
            return too_large()
        async for part in request.stream():
            body += part
            if len(body) > MOST:
                return too_large()
        try:
            return Response(await run_in_threadpool(work, bytes(body)), media_type=BODY)
        except WireError as failure:
            return JSONResponse({"error": str(failure)[:500]}, 400)

    return service


def listen(site: SiteFile) -> socket.socket:
    """The socket, in a folder that only the site's user (or group) enters. Raises ConfigError when
    another service holds it."""
    path = Path(site.socket).expanduser()
    group = site.group_may_connect
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750 if group else 0o700)
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ConfigError(f"socket: {path} is there and no socket; give another path")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink()  # left by a service that was killed
            else:
                raise ConfigError(f"socket: a vault is already listening at {path}")
    made = socket.socket(socket.AF_UNIX)
    before = os.umask(0o117 if group else 0o177)
    try:
        made.bind(str(path))
        made.listen(64)  # from here on couriers wait instead of being refused
    except OSError as failure:
        raise ConfigError(f"socket: cannot listen at {path}: {failure}") from None
    finally:
        os.umask(before)
    return made
