"""The lease of a training, and the progress that is reported through it."""

import pytest
import redis

from backend.learning import lease
from backend.learning.lease import Abandoned
from backend.learning.progress import Progress
from tests.support.processes import wait_until

PROJECT = "2.1795333437"
TIMEOUT_S = 60


@pytest.mark.slow  # waits for a beat of the lease
def test_who_has_lost_its_lease_stops_at_its_next_report(valkey: redis.Redis) -> None:
    with lease.training(valkey, PROJECT) as run:
        run.report(Progress("fit"))
        valkey.set(lease._lease_key(PROJECT), "somebody else")
        wait_until("the loss to be noticed", run.why_stop, TIMEOUT_S)
        with pytest.raises(Abandoned, match="another process"):
            run.report(Progress("fit"))
    assert valkey.get(lease._lease_key(PROJECT)) == b"somebody else", "it is theirs"


@pytest.mark.slow  # waits for a beat of the lease
def test_a_lease_that_expired_is_taken_back_if_nobody_else_has_it(valkey: redis.Redis) -> None:
    with lease.training(valkey, PROJECT) as run:
        valkey.delete(lease._lease_key(PROJECT))
        wait_until("the lease", lambda: valkey.exists(lease._lease_key(PROJECT)), TIMEOUT_S)
        run.report(Progress("fit"))
    assert not valkey.exists(lease._lease_key(PROJECT))


# --- progress


def test_progress_is_told_once_a_second_at_most_but_every_stage_is(valkey: redis.Redis) -> None:
    told: list[Progress] = []
    with lease.training(valkey, PROJECT, told.append) as run:
        run.report(Progress("load"))
        for step in range(1000):
            run.report(Progress("fit", step, 1000, 1 / (step + 1), 1000.0 - step))
        run.report(Progress("fit", 1000, 1000, 0.001, 0.0))
        run.report(Progress("score"))
    assert [progress.stage for progress in told][:2] == ["load", "fit"]
    assert told[-2].step == 1000, "the last step is told"
    assert told[-1].stage == "score"
    assert len(told) < 100


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (Progress("load"), "load"),
        (Progress("fit", 3, 12, 0.25, 61.4), "fit, 3/12, loss 0.2500, 61 s left"),
    ],
)
def test_a_progress_reads_as_a_line(progress: Progress, said: str) -> None:
    assert str(progress) == said
    assert Progress.from_json(progress.to_json()) == progress
