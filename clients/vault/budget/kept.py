"""What is kept of a release is bound to its charge: the ledger names the file's digest, so that
another file, or none, never stands for it."""

from __future__ import annotations

import os
from collections.abc import Collection

from fedduet.clients.vault.budget.entry import Kept, kept_digest
from fedduet.clients.vault.budget.journal import Journal, LedgerError


def bind(
    ledger: str | os.PathLike[str], id: str, digest: str, paid_by: Collection[str] = ()
) -> None:
    """Write down in the ledger file that the release `id` is kept, as a file whose SHA-256 is
    `digest`; return once that is on the disk, only then may it leave.

    `paid_by`: ids of charges of which one paid for it, `id` its own is one. A release that is
    written down already must have this digest. Raises LedgerError where it has not, where nobody
    paid for it, or where the file cannot be read or written.
    """
    with Journal(ledger).locked() as journal:
        earlier = kept_digest(journal.entries, id)
        if earlier == digest:
            return
        if earlier is not None:
            raise LedgerError(
                f"release {id}: what is kept of it is not what left; nothing was released; restore"
                " the kept file"
            )
        if not {id, *paid_by} & {line.get("id") for line in journal.entries}:
            raise LedgerError(
                f"release {id}: is kept, but {ledger} does not know of it; nothing was released;"
                " restore the ledger, or remove what is kept"
            )
        journal.append(Kept(id, digest).to_line())
