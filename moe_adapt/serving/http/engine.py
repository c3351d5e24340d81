"""One thread that answers requests in batches: those of different adapters together, in order of arrival.

A batch is what waits when the model is free, up to a size. Requests for several adapters over one base
share it (`moe_adapt.tuner.mixed_batch`). A job that nobody waits for any more is dropped before its batch, or
leaves it between two tokens.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.serving.classify import Answer, Classifying
from moe_adapt.serving.generate import Generating, Request

__all__ = ["Busy", "Engine", "Job"]


class Busy(Exception):
    """The queue is full."""


@dataclass
class Job:
    """One request on its way.

    Attributes:
        adapter: Name of the adapter.
        request: An answer to write; None for rows to classify.
        inputs: Rows to classify.
        top: Classes to name.
        domain: Whose the rows are, a value of the domain column; None for unknown.
        notify: Called once when it is done, from the engine's thread.
        dropped: Set when nobody waits any more.
        answers: What the classifier said.
        error: What went wrong, if anything.
    """

    adapter: str
    request: Request | None = None
    inputs: Sequence[Any] = ()
    top: int = 1
    domain: str | None = None
    notify: Callable[[], object] = lambda: None
    dropped: threading.Event = field(default_factory=threading.Event)
    answers: list[Answer] = field(default_factory=list)
    error: Exception | None = None


class Engine:
    """The thread and its queue.

    Args:
        model: What is served; it may hold several adapters.
        max_batch: The most rows or answers at a time.
        max_waiting: The most jobs that wait; more are refused.

    Attributes:
        batches: Sizes of the last batches and how many adapters were in them, newest last.
    """

    def __init__(self, model: Classifying | Generating, max_batch: int = 16, max_waiting: int = 64) -> None:
        self.model = model
        self.max_batch = max_batch
        self.waiting: queue.Queue[Job | None] = queue.Queue(maxsize=max_waiting)
        self.batches: list[tuple[int, int]] = []
        self._thread = threading.Thread(target=self._work, name="moe-adapt-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Busy: If too many wait already.
        """
        try:
            self.waiting.put_nowait(job)
        except queue.Full:
            raise Busy from None

    def close(self) -> None:
        """Answer what waits, then stop the thread."""
        self.waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            job = self.waiting.get()
            if job is None:
                return
            jobs, last = self._gather(job)
            jobs = [one for one in jobs if not one.dropped.is_set()]
            if jobs:
                self._answer(jobs)
            if last:
                return

    def _gather(self, first: Job) -> tuple[list[Job], bool]:
        """Return the first job and those that wait behind it, and whether the engine is to stop."""
        jobs, size = [first], max(1, len(first.inputs))
        while size < self.max_batch:
            try:
                job = self.waiting.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
            size += max(1, len(job.inputs))
        return jobs, False

    def _answer(self, jobs: list[Job]) -> None:
        self.batches = [*self.batches[-99:], (len(jobs), len({job.adapter for job in jobs}))]
        try:
            self._run(jobs)
        except Exception as error:
            if len(jobs) > 1 and isinstance(error, UserError):  # one bad row must not cost the others theirs
                for job in jobs:
                    self._answer([job])
                return
            for job in jobs:
                job.error = error
        for job in jobs:
            job.notify()

    def _run(self, jobs: list[Job]) -> None:
        if isinstance(self.model, Generating):
            requests = [job.request for job in jobs if job.request is not None]
            self.model.generate(requests)
            return
        inputs = [row for job in jobs for row in job.inputs]
        names = [job.adapter for job in jobs for _ in job.inputs]
        domains = [job.domain for job in jobs for _ in job.inputs]
        top = max(job.top for job in jobs)
        answers: list[Answer] = []
        for start in range(0, len(inputs), self.max_batch):
            part = slice(start, start + self.max_batch)
            answers += self.model(inputs[part], top, names[part], domains[part])
        for job in jobs:
            job.answers, answers = answers[: len(job.inputs)], answers[len(job.inputs) :]
