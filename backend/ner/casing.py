"""How a word is written, for a checkpoint whose vocabulary has lower case only: `us` and `US` differ by this alone."""

PLAIN = 0  # all lower case, or without letters that have a case
CAPITAL = 1  # Paris
UPPER = 2  # NATO
MIXED = 3  # iPhone, McDonald
WITH_DIGITS = 4  # B12, 7th: letters and digits

NUM_KINDS = 5


def kind(word: str) -> int:
    """One of the kinds above. A capital alone (`A`) is a CAPITAL: sentences begin with it."""
    letters = [sign for sign in word if sign.isalpha()]
    if letters and len(letters) < len(word) and any(sign.isdigit() for sign in word):
        return WITH_DIGITS
    upper = sum(sign.isupper() for sign in letters)
    if not upper:
        return PLAIN
    if upper == len(letters):
        return UPPER if upper > 1 else CAPITAL
    return CAPITAL if upper == 1 and letters[0].isupper() else MIXED
