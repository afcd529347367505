"""Who may wait for predictions at the same time."""

from contextlib import ExitStack

import pytest

from backend.errors import Overloaded
from backend.metrics import Metrics
from backend.serving.admission import Admission
from backend.serving.batcher import Batcher
from backend.serving.windows import BatchLimits, Priority
from tests.support.fakes import BASE, FakeEngine, codec


def batcher(queued: int = 100) -> Batcher:
    """Never started: all windows wait."""
    return Batcher(FakeEngine, BatchLimits(1000, 10, queued=queued), Metrics())


def test_requests_over_many_tasks_are_refused_first() -> None:
    admission = Admission(batcher(), 4)
    with ExitStack() as inside:
        for _ in range(2):
            inside.enter_context(admission.of(Priority.BULK))
        with pytest.raises(Overloaded, match="GNER_THREADS"), admission.of(Priority.BULK):
            pass
        inside.enter_context(admission.of(Priority.OPEN_TASK))
        inside.enter_context(admission.of(Priority.INTERACTIVE))
        for priority in Priority:
            with pytest.raises(Overloaded), admission.of(priority):
                pass
    for _ in range(9):  # whoever leaves makes room, also after an error
        with pytest.raises(ZeroDivisionError), admission.of(Priority.BULK):
            raise ZeroDivisionError


def test_a_full_queue_refuses_requests_over_many_tasks_and_later_all() -> None:
    of_queue = batcher(queued=3)
    admission = Admission(of_queue, 4)
    prompt = codec().encode(("person",), ["x"])
    for _ in range(3):
        of_queue.submit(prompt, Priority.BULK, BASE)
    with pytest.raises(Overloaded, match="GNER_MAX_QUEUE"), admission.of(Priority.BULK):
        pass
    with admission.of(Priority.OPEN_TASK):
        pass
    for _ in range(3):
        of_queue.submit(prompt, Priority.OPEN_TASK, BASE)
    with pytest.raises(Overloaded), admission.of(Priority.INTERACTIVE):
        pass
