"""Batches of like length: every row once, within the limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.engine.batches import batches_by_length


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "max_rows", "padded", "expected"),
    [
        ([], 10, None, True, []),
        ([3, 1, 2], None, None, True, [[1, 2, 0]]),
        ([3, 1, 2], None, 2, True, [[1, 2], [0]]),
        ([3, 1, 2], 5, None, True, [[1, 2], [0]]),  # 3 rows of 3 would be 9 tokens
        ([3, 1, 2], 6, None, False, [[1, 2, 0]]),  # 6 tokens without padding
        ([3, 1, 2], 5, None, False, [[1, 2], [0]]),
        ([99, 1], 10, None, True, [[1], [0]]),  # too long for any batch: alone
        ([2, 2, 2], 4, None, True, [[0, 1], [2]]),
    ],
)
def test_examples(
    lengths: list[int], max_tokens: int | None, max_rows: int | None, padded: bool, expected: list[list[int]]
) -> None:
    assert batches_by_length(lengths, max_tokens=max_tokens, max_rows=max_rows, padded=padded) == expected


@given(st.lists(st.integers(1, 50)), st.integers(1, 100), st.integers(1, 8), st.booleans())
def test_every_row_once_and_within_the_limits(lengths: list[int], max_tokens: int, max_rows: int, padded: bool) -> None:
    batches = batches_by_length(lengths, max_tokens=max_tokens, max_rows=max_rows, padded=padded)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        own = [lengths[index] for index in batch]
        tokens = max(own) * len(own) if padded else sum(own)
        assert len(batch) == 1 or (len(batch) <= max_rows and tokens <= max_tokens)
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(in_order)
