from pathlib import Path

import numpy as np

from backend.pretraining.meanings import entity_types, vectors
from tests.support import small_recipe as small


def test_meanings_are_in_the_order_of_the_names_and_of_length_one(tmp_path: Path) -> None:
    encoder = small.write_encoder(tmp_path / "encoder")
    names = ["sad disease", "place", "person", "heart pain today"]
    found = vectors(names, encoder)
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    for name, row in zip(names, found, strict=True):
        assert np.allclose(vectors([name], encoder)[0], row, atol=1e-5)
    assert np.allclose(vectors(["PLACE"], encoder)[0], found[1], atol=1e-5)


def test_types_are_distinct_and_know_their_meanings(tmp_path: Path) -> None:
    types = entity_types(["place", "person", "place"], small.write_encoder(tmp_path / "encoder"), frozenset(["city"]))
    assert types.cosine("place", ["place"]) > 0.999
    assert types.cosine("nowhere", ["place"]) == types.cosine("place", []) == -1.0
    assert types.never_asked == {"city"}
