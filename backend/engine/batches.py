"""Batches of rows of like length under a token budget: little padding, and no batch too large for the memory."""

from collections.abc import Sequence


def batches_by_length(
    lengths: Sequence[int], *, max_tokens: int | None = None, max_rows: int | None = None, padded: bool = True
) -> list[list[int]]:
    """Indices of `lengths` in batches of like length, the shortest first; rows of one length keep their order.

    A batch holds at most `max_rows` rows and `max_tokens` tokens; a longer row is a batch of its own. `padded` counts
    every row as long as the longest of its batch, otherwise each counts its own tokens.
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    own_tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        own_tokens += lengths[index]
        tokens = lengths[index] * (len(batch) + 1) if padded else own_tokens
        is_full = len(batch) == max_rows or (max_tokens is not None and tokens > max_tokens)
        if batch and is_full:
            batches.append(batch)
            batch, own_tokens = [], lengths[index]
        batch.append(index)
    if batch:
        batches.append(batch)
    return batches
