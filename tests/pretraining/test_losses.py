"""The losses of a batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.ner.casing import CAPITAL
from backend.pretraining.checkpoint import build
from backend.pretraining.losses import collate
from backend.pretraining.mixture import Sample
from tests.support import small_recipe as small


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_encoder(tmp_path_factory.mktemp("encoder") / "model")


def test_every_loss_falls_on_a_batch_seen_again_and_again(encoder: Path) -> None:
    built = build(small.recipe(), [("Ada",)], encoder)
    for part in (built.learner.model.encoder, built.learner.model.decoder):
        part.set_attn_implementation("eager")
    tags = ("B-sad disease", "I-sad disease", "O", "B-place")
    samples = [
        Sample(("person", "place"), ("Ada", "left", "Rome", "."), ("B-person", "O", "B-place", "O")),
        Sample(("place", "sad disease"), ("heart", "pain", "in", "Oslo"), tags),
    ]
    batch = collate([built.sample_encoder.encode(sample) for sample in samples], built.sample_encoder)
    optimizer = torch.optim.AdamW(built.learner.parameters(), lr=3e-3)
    first = {name: float(loss.detach()) for name, loss in built.learner.losses(batch).items()}
    for _ in range(40):
        optimizer.zero_grad()
        sum(built.learner.losses(batch).values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    last = {name: float(loss.detach()) for name, loss in built.learner.losses(batch).items()}
    assert set(first) == {"decisions", "copy", "draft", "pointer"}
    assert all(last[name] < first[name] * 0.8 for name in first), (first, last)


def test_padding_changes_no_loss(encoder: Path) -> None:
    built = build(small.recipe(), [("Ada",)], encoder)
    for part in (built.learner.model.encoder, built.learner.model.decoder):
        part.set_attn_implementation("eager")
    short = built.sample_encoder.encode(Sample(("person",), ("Ada",), ("B-person",)))
    long = built.sample_encoder.encode(
        Sample(("person", "place"), ("Ada", "left", "Rome") * 4, ("B-person", "O", "B-place") * 4)
    )
    with torch.no_grad():
        alone = built.learner.losses(collate([short], built.sample_encoder))["draft"]
        words = len(short.tags), len(long.tags)
        together = built.learner.losses(collate([short, long], built.sample_encoder))["draft"]
        other = built.learner.losses(collate([long], built.sample_encoder))["draft"]
    assert together.item() == pytest.approx((alone * words[0] + other * words[1]).item() / sum(words), abs=1e-4)


def test_kinds_reach_the_batch_only_if_the_recipe_says_so(encoder: Path) -> None:
    sample = Sample(("person",), ("Ada", "left"), ("B-person", "O"))
    for marks_case, expected in ((False, 0), (True, CAPITAL)):
        recipe = small.recipe()
        recipe = replace(recipe, architecture=replace(recipe.architecture, marks_case=marks_case))
        built = build(recipe, [("Ada",)], encoder)
        encoded = built.sample_encoder.encode(sample)
        batch = collate([encoded], built.sample_encoder)
        assert int(batch.source_kinds[0, encoded.word_positions[0]]) == expected
        assert int(batch.source_kinds.sum()) == expected


def test_smoothing_asks_for_a_share_of_every_legal_option(encoder: Path) -> None:
    built = build(small.recipe(), [("Ada",)], encoder)
    for part in (built.learner.model.encoder, built.learner.model.decoder):
        part.set_attn_implementation("eager")
    rows = [
        built.sample_encoder.encode(Sample(("person",), ("Ada",), ("B-person",))),
        built.sample_encoder.encode(Sample(("person", "place"), ("Ada", "left"), ("B-person", "O"))),
    ]
    batch = collate(rows, built.sample_encoder)
    with torch.no_grad():
        exact = built.learner.losses(batch)
        smoothed = built.learner.losses(batch, smoothing=0.5)
        drafts = built.learner.head(
            built.learner.model.encoder(
                input_ids=batch.source, attention_mask=batch.source_mask, token_type_ids=batch.source_kinds
            ).last_hidden_state,
            batch.word_positions,
            batch.label_spans,
        )
    # three words: one with the tags of one label, two with those of two labels
    surprises = [-drafts[0, 0, :3].log_softmax(-1), *(-drafts[1, :, :5].log_softmax(-1))]
    uniform = sum(float(of_word.mean()) for of_word in surprises) / 3
    assert smoothed["draft"].item() == pytest.approx((exact["draft"].item() + uniform) / 2, abs=1e-4)
    assert smoothed["decisions"].item() != pytest.approx(exact["decisions"].item(), abs=1e-4)
    assert smoothed["copy"].item() == exact["copy"].item()
