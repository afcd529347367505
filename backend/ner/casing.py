"""The case of words, for checkpoints whose vocabulary is all lower case. Only this tells `us` from `US`."""

PLAIN = 0  # lower case, or no letters with case
CAPITAL = 1  # Paris
UPPER = 2  # NATO
MIXED = 3  # iPhone, McDonald
WITH_DIGITS = 4  # B12, 7th

NUM_KINDS = 5


def kind(word: str) -> int:
    """One of the kinds above. A single capital letter is a CAPITAL, because sentences begin with `A` and `I`."""
    letters = [sign for sign in word if sign.isalpha()]
    if letters and len(letters) < len(word) and any(sign.isdigit() for sign in word):
        return WITH_DIGITS
    upper = sum(sign.isupper() for sign in letters)
    if not upper:
        return PLAIN
    if upper == len(letters):
        return UPPER if upper > 1 else CAPITAL
    return CAPITAL if upper == 1 and letters[0].isupper() else MIXED
