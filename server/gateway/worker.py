"""One thread runs the gateway's model: what waits together runs in one batch, and scoring goes
between the steps of writing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from fedduet.lm.decoding.decode import Answer, Ask, decode
from fedduet.lm.decoding.sample import end_tokens
from fedduet.lm.decoding.stepper import stepper
from fedduet.server.llm.top_logprobs import PlaceLogprobs, top_logprobs


@dataclass
class Writing:
    """Rows that one request wants continued. `on_progress(row, new tokens)` is called after every
    token, in a thread of the worker's. `cancelled` ends its rows after their next token."""

    asks: Sequence[Ask]
    on_progress: Callable[[int, list[int]], None] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: Future[list[Answer]] = field(default_factory=Future)


@dataclass
class _Scoring:
    rows: Sequence[Sequence[int]]
    starts: Sequence[int]
    k: int
    done: Future[list[PlaceLogprobs]] = field(default_factory=Future)


class Worker:
    """Owns the model while the gateway runs. A batch of writing is not joined by requests that come
    later; scoring never waits longer than one step of it."""

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int = 16_384) -> None:
        self._model, self._vocabulary, self._batch_tokens = model, len(tokenizer), batch_tokens
        self._run, self._ends = stepper(model), end_tokens(model, tokenizer)
        self._wake = threading.Condition()
        self._writing: list[Writing] = []
        self._scoring: list[_Scoring] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="gateway-worker", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._writing) + len(self._scoring)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text."""
        return self._ends

    def write(self, job: Writing) -> Future[list[Answer]]:
        """Continue the job's rows; answers in their order."""
        with self._wake:
            self._writing.append(job)
            self._wake.notify()
        return job.done

    def score(
        self, rows: Sequence[Sequence[int]], starts: Sequence[int], k: int
    ) -> Future[list[PlaceLogprobs]]:
        """See `top_logprobs`."""
        job = _Scoring(rows, starts, k)
        with self._wake:
            self._scoring.append(job)
            self._wake.notify()
        return job.done

    def close(self) -> None:
        """Ends the thread; what waits or runs is cancelled."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._writing or self._scoring)
                if self._closed:
                    for job in (*self._writing, *self._scoring):
                        job.done.cancel()
                    return
                jobs, self._writing = (
                    [job for job in self._writing if job.done.set_running_or_notify_cancel()],
                    [],
                )
            self._score_all()
            if jobs:
                self._write_all(jobs)

    def _score_all(self) -> None:
        """Everything that waits to be scored, in one batch."""
        if not self._scoring:
            return
        with self._wake:
            jobs, self._scoring = (
                [job for job in self._scoring if job.done.set_running_or_notify_cancel()],
                [],
            )
        if not jobs:
            return
        try:
            rows, starts = (
                [row for job in jobs for row in job.rows],
                [start for job in jobs for start in job.starts],
            )
            most = max(job.k for job in jobs)
            found = top_logprobs(
                self._model, rows, most, starts, self._vocabulary, self._batch_tokens
            )
        # it belongs to those who wait; the thread goes on for the others
        except Exception as failure:
            for job in jobs:
                job.done.set_exception(failure)
            return
        begin = 0
        for job in jobs:
            job.done.set_result(found[begin : begin + len(job.rows)])
            begin += len(job.rows)

    def _write_all(self, jobs: Sequence[Writing]) -> None:
        """The rows of all jobs in one batch. A job is done when its own rows are."""
        places = [(job, row) for job in jobs for row in range(len(job.asks))]
        answers: list[list[Answer | None]] = [[None] * len(job.asks) for job in jobs]
        numbers = {id(job): number for number, job in enumerate(jobs)}

        def finish(at: int, answer: Answer) -> None:
            job, row = places[at]
            mine = answers[numbers[id(job)]]
            mine[row] = answer
            if all(mine):
                job.done.set_result(mine)

        try:
            asks = [
                replace(ask, stopped=self._stopping(job, row, ask))
                for job in jobs
                for row, ask in enumerate(job.asks)
            ]
            decode(
                self._run,
                asks,
                self._ends,
                batch_size=None,
                batch_tokens=self._batch_tokens,
                done=finish,
            )
        except Exception as failure:
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(failure)

    def _stopping(self, job: Writing, row: int, ask: Ask) -> Callable[[list[int]], bool]:
        def stopped(new: list[int]) -> bool:
            self._score_all()
            if job.on_progress:
                job.on_progress(row, new)
            return job.cancelled.is_set() or self._closed or bool(ask.stopped and ask.stopped(new))

        return stopped
