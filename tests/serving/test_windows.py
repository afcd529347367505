"""Which windows go first, which share a batch, and that every request gets its share."""

import random
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from backend.serving.windows import BatchLimits, Priority, Share, Waiting, WindowQueue
from tests.support.fakes import BASE, codec

ROOMY = BatchLimits(1_000_000, 1000)
ONE_BY_ONE = BatchLimits(1_000_000, 1)
PROMPT: Any = codec().encode(("person",), ["x"])


def queue(*windows: tuple[int, Priority, str], limits: BatchLimits = ROOMY) -> WindowQueue:
    """Each window a request of its own."""
    found = WindowQueue(limits)
    for tokens, priority, version in windows:
        found.add(PROMPT, version, tokens, priority, Share())
    return found


def add(to: WindowQueue, number: int, tokens: int = 10, priority: Priority = Priority.BULK) -> "list[Future[Any]]":
    """Windows of one request."""
    share = Share()
    return [to.add(PROMPT, BASE, tokens, priority, share) for _ in range(number)]


def taken(of: WindowQueue) -> "list[Future[Any]]":
    """All windows, in the order in which they are taken."""
    order: list[Future[Any]] = []
    while batch := of.take():
        order += [waiting.future for waiting in batch]
    return order


@pytest.mark.parametrize(
    ("tokens", "limits", "expected"),
    [
        ([10, 10, 10], BatchLimits(100, 10), [10, 10, 10]),
        ([10, 10, 10], BatchLimits(100, 2), [10, 10]),
        # the longest row counts for all
        ([10, 10, 10], BatchLimits(20, 10), [10, 10]),
        ([10, 60, 10], BatchLimits(70, 10), [10, 10]),
        # the first is taken however long it is, alone
        ([500, 10, 10], BatchLimits(100, 10), [500]),
        # of those that wait, those of like length
        ([50, 10, 49, 11, 51, 48], BatchLimits(220, 10), [50, 49, 51, 48]),
    ],
)
def test_a_batch_is_the_first_and_those_like_it(tokens: list[int], limits: BatchLimits, expected: list[int]) -> None:
    waiting = queue(*((length, Priority.BULK, BASE) for length in tokens), limits=limits)
    assert [one.tokens for one in waiting.take()] == expected


def test_who_sits_and_waits_shares_only_with_others_like_them() -> None:
    personal = [(50, Priority.INTERACTIVE), (90, Priority.INTERACTIVE), (10, Priority.OPEN_TASK), (50, Priority.BULK)]
    waiting = queue(*((tokens, priority, BASE) for tokens, priority in personal))
    assert [one.tokens for one in waiting.take()] == [50, 10], "no longer window, and none that nobody sits before"
    assert [one.tokens for one in waiting.take()] == [90]
    assert [one.tokens for one in waiting.take()] == [50]


def test_a_batch_of_persons_has_few_rows() -> None:
    windows = [(10, Priority.OPEN_TASK, BASE)] * 9
    waiting = queue(*windows, limits=BatchLimits(1000, 8, personal_rows=4))
    assert [len(waiting.take()) for _ in range(3)] == [4, 4, 1]


@hypothesis_settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(1, 500), st.sampled_from(Priority), st.sampled_from("ABC")), min_size=1, max_size=30
    ),
    st.integers(1, 2000),
    st.integers(1, 20),
)
def test_batches_keep_to_their_limits_and_every_window_gets_its_turn(
    asked: list[tuple[int, Priority, str]], tokens: int, rows: int
) -> None:
    waiting = queue(*asked, limits=BatchLimits(tokens, rows))
    seen: list[Waiting] = []
    while len(waiting):
        first = waiting.first()
        batch = waiting.take()
        assert batch[0] is first, "the most urgent is in it"
        assert len(batch) <= rows
        assert len(batch) == 1 or max(one.tokens for one in batch) * len(batch) <= tokens
        assert len({one.version for one in batch}) == 1
        seen += batch
    assert len({id(one) for one in seen}) == len(seen) == len(asked)
    assert waiting.first() is None
    assert waiting.take() == []


# --- shares


def test_a_request_of_one_window_does_not_wait_for_one_of_thousands() -> None:
    waiting = WindowQueue(ONE_BY_ONE)
    add(waiting, 1000)
    for _ in range(10):
        waiting.take()
    [short] = add(waiting, 1)
    assert short in taken(waiting)[:2]


def test_requests_take_turns_by_their_tokens() -> None:
    waiting = WindowQueue(ONE_BY_ONE)
    long = add(waiting, 50, tokens=100)
    short = add(waiting, 50, tokens=10)
    order = taken(waiting)
    last_short = order.index(short[-1])
    assert len(set(order[:last_short]) & {*long}) in range(4, 8), "500 tokens of each by then"
    assert [one for one in order if one in long] == long, "within a request the order stays"


def test_many_short_requests_do_not_starve_a_long_one() -> None:
    waiting = WindowQueue(ONE_BY_ONE)
    long = add(waiting, 5, tokens=100)
    order: list[Future[Any]] = []
    for _ in range(500):
        add(waiting, 1, tokens=10)  # as fast as they are answered
        order += [one.future for one in waiting.take()]
    assert long[-1] in order


def test_who_was_idle_has_saved_nothing() -> None:
    waiting = WindowQueue(ONE_BY_ONE)
    idle = Share()
    waiting.add(PROMPT, BASE, 10, Priority.BULK, idle)
    add(waiting, 100)
    for _ in range(50):
        waiting.take()
    late = [waiting.add(PROMPT, BASE, 10, Priority.BULK, idle) for _ in range(20)]
    order = taken(waiting)
    assert order.index(late[-1]) > 25, "it shares with the others from now on"


def test_windows_move_to_another_priority_and_request() -> None:
    waiting = WindowQueue(ONE_BY_ONE)
    first, second, third = add(waiting, 3)
    waiting.set_priority([third], Priority.OPEN_TASK, Share())
    waiting.set_priority([first], Priority.BACKGROUND, None)
    waiting.set_priority([first], Priority.BULK, None)
    waiting.set_priority([second], Priority.BACKGROUND, None)
    assert taken(waiting) == [third, first, second]
    waiting.set_priority([first], Priority.BULK, None)  # has been taken
    assert taken(waiting) == []


@hypothesis_settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_whatever_moves_every_window_is_taken_once(seed: int) -> None:
    rng = random.Random(seed)
    waiting = WindowQueue(BatchLimits(200, 4, 2))
    futures: list[Future[Any]] = []
    order: list[Future[Any]] = []
    for _ in range(60):
        action = rng.choice(["add", "move", "take"])
        if action == "add":
            futures += add(waiting, rng.randint(1, 5), rng.randint(1, 99), rng.choice([*Priority]))
        elif action == "move" and futures:
            some = rng.choices(futures, k=3)
            waiting.set_priority(some, rng.choice([*Priority]), rng.choice([None, Share()]))
        else:
            order += [one.future for one in waiting.take()]
    order += taken(waiting)
    assert len(order) == len(futures)
    assert {*order} == {*futures}


def test_what_is_drained_waits_no_more() -> None:
    waiting = WindowQueue(ROOMY)
    futures = add(waiting, 3)
    assert [one.future for one in waiting.drain()] == futures
    assert len(waiting) == 0
    assert waiting.take() == []
