"""What goes wrong at a site: a no with its reason for the person at the other end, or a failure
whose text stays at home."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from fedduet.clients.vault.budget.ledger import LedgerError
from fedduet.clients.vault.release.policy import PolicyError
from fedduet.conf.check import ConfigError
from fedduet.lm.dp.accounting import BudgetError
from fedduet.wire.messages import Refused

FAILURES = "failures.log"  # in the site's folder, with tracebacks; may quote records
# whatever is wrong with it: what, and where, is for the site alone
LEDGER = f"the site's ledger does not allow it; nothing was released; its {FAILURES} says why"
_log = logging.getLogger(__name__)


def _write_down(folder: Path, what: str) -> None:
    """The exception being handled, to the site's own log and file."""
    _log.exception("%s", what)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(
            os.open(folder / FAILURES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
            "a",
            encoding="utf-8",
        ) as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {what}\n{traceback.format_exc()}\n")
    except OSError as failure:
        _log.error("%s: cannot write %s: %s", what, folder / FAILURES, failure)


def refusing(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a policy's or budget's no into a `Refused` answer with its reason, and any other failure
    into one of a constant reason.

    What training or reading raised, and of which type it is, may depend on a record, and what a
    ledger says is wrong names paths and other runs: that stays in `FAILURES`.
    """

    @wraps(method)
    def answer(self: Any, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except PolicyError as no:
            refused = Refused(no.reason, "policy")
        except BudgetError as no:
            refused = Refused(str(no), "budget")
        except LedgerError as no:
            _write_down(self.config.folder, f"{self.config.client}: {method.__name__}: {no}")
            refused = Refused(f"{method.__name__}: {LEDGER}", "ledger")
        except ConfigError:
            _write_down(
                self.config.folder,
                f"{self.config.client}: {method.__name__} cannot use its data or models",
            )
            refused = Refused(
                f"{method.__name__}: this site's data or models cannot be used; its {FAILURES}"
                " says why",
                "data",
            )
        except Exception:
            _write_down(self.config.folder, f"{self.config.client}: {method.__name__} failed")
            refused = Refused(
                f"{method.__name__} failed; the site's {FAILURES} says why",
                "error",
            )
        return (refused, None) if method.__name__ == "learn" else refused

    return answer
