import pytest

from backend.ner.casing import CAPITAL, MIXED, NUM_KINDS, PLAIN, UPPER, WITH_DIGITS, kind


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("us", PLAIN),
        ("...", PLAIN),
        ("1,000.5", PLAIN),
        ("", PLAIN),
        ("東京", PLAIN),
        ("Paris", CAPITAL),
        ("A", CAPITAL),
        ("Émile", CAPITAL),
        ("@Anna", CAPITAL),
        ("US", UPPER),
        ("U.S.", UPPER),
        ("iPhone", MIXED),
        ("McDonald", MIXED),
        ("B12", WITH_DIGITS),
        ("7th", WITH_DIGITS),
    ],
)
def test_how_words_are_written(word: str, expected: int) -> None:
    assert kind(word) == expected
    assert expected < NUM_KINDS
