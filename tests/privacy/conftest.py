"""The fixtures of the clients' tests: a real site on tiny models."""

from tests.clients.conftest import seen, site  # noqa: F401
