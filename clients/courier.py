"""A vault that the site itself runs, seen by the courier: a socket to pass messages through, and
nothing else."""

from __future__ import annotations

from typing import Any

import httpx
from fedduet.wire.body import from_body, to_body
from fedduet.wire.codec import Arrays, WireError
from fedduet.wire.messages import Refused

SCHEME = "unix://"
LONGEST = 7200.0  # seconds for one answer [O]; a phase of the strategy usually ends earlier


def ask_remote(
    url: str, request: Any, arrays: Arrays | None = None, timeout: float = LONGEST
) -> tuple[Any, Arrays | None]:
    """The answer of the vault at `url` ("unix:///path/to/socket"); a vault that cannot be reached,
    or answers nonsense, is a refusal."""
    if not url.startswith(SCHEME):
        return (
            Refused(
                f"vault: found {url[:80]!r} in the node's settings; allowed:"
                " unix:///path/to/socket",
                "request",
            ),
            None,
        )
    try:
        transport = httpx.HTTPTransport(uds=url.removeprefix(SCHEME))
        with httpx.Client(
            transport=transport,
            base_url="http://vault",
            timeout=httpx.Timeout(timeout, connect=5.0),
        ) as client:
            reply = client.post("/v1/messages", content=to_body(request, arrays))
    except httpx.HTTPError as failure:
        return (
            Refused(
                f"this site's vault cannot be reached ({type(failure).__name__}); is fedduet-vault"
                " running?",
                "error",
            ),
            None,
        )
    if reply.status_code != 200:
        return (
            Refused(
                f"this site's vault answered {reply.status_code}: {reply.text[:300]}", "request"
            ),
            None,
        )
    try:
        answer, returned = from_body(reply.content)
    except WireError as failure:
        return Refused(f"this site's vault answered what is no message: {failure}", "error"), None
    return answer, returned or None
