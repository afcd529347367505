"""The data of a run: what it trains on, what it holds out, and the stream of batches for each process."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from backend.engine.batches import batches_by_length
from backend.errors import LabelsIndistinguishable
from backend.evaluation.corpora import Corpus, read_corpora
from backend.pretraining.encoding import EncodedSample, SampleEncoder
from backend.pretraining.losses import Batch, collate
from backend.pretraining.mixture import Mixture
from backend.pretraining.recipe import Recipe
from backend.pretraining.written import WRITTEN, written_corpora


def hold_out(corpora: Sequence[Corpus], recipe: Recipe) -> tuple[list[Corpus], list[Corpus]]:
    """Divide each train split: corpora to train on, and the same corpora with the held-out sentences as `dev`.

    The recipe's seed alone determines which sentences are held out. Corpora without a share in the mixture are omitted.
    """
    training, held_out = [], []
    for corpus in corpora:
        if corpus.collection not in recipe.mixture.shares:
            continue
        order = list(range(len(corpus.train)))
        random.Random(f"{recipe.seed}/held out/{corpus.name}").shuffle(order)
        number = min(recipe.held_out_max, int(recipe.held_out * len(order)))
        held = {*order[:number]}
        training.append(replace(corpus, train=tuple(s for i, s in enumerate(corpus.train) if i not in held)))
        held_out.append(replace(corpus, dev=tuple(corpus.train[i] for i in sorted(held))))
    return training, held_out


def with_dev(corpora: Sequence[Corpus]) -> list[Corpus]:
    """The corpora with their published dev splits, if any, added to the train splits."""
    return [replace(corpus, train=corpus.train + corpus.dev, dev=()) for corpus in corpora]


def materials(corpora_folder: Path, recipe: Recipe) -> tuple[list[Corpus], list[Corpus]]:
    """Corpora to train on, and corpora whose `dev` is held out; with the written corpus if it has a share."""
    training, held_out = hold_out(read_corpora(corpora_folder), recipe)
    if WRITTEN in recipe.mixture.shares:
        written = written_corpora()
        training.append(replace(written[0], dev=()))  # unlike published dev splits it is never trained on
        held_out += [replace(corpus, dev=corpus.dev[: recipe.written_held_out_max]) for corpus in written]
    return training, held_out


class Stream:
    """Endless batches for one process. `pool` and `taken` are its position, from which it can be continued."""

    def __init__(
        self, mixture: Mixture, sample_encoder: SampleEncoder, recipe: Recipe, rank: int, pool: int = 0, taken: int = 0
    ) -> None:
        """Continue after the first `taken` batches of pool number `pool`."""
        self.pool, self.taken = pool, taken
        self._mixture, self._sample_encoder, self._recipe, self._rank = mixture, sample_encoder, recipe, rank
        self._batches = self._draw_pool()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self.taken == len(self._batches):
                self.pool, self.taken = self.pool + 1, 0
                self._batches = self._draw_pool()
            self.taken += 1
            yield collate(self._batches[self.taken - 1], self._sample_encoder)

    def _draw_pool(self) -> list[list[EncodedSample]]:
        """Batches of samples of like length, in random order."""
        rng = random.Random(f"{self._recipe.seed}/{self._rank}/{self.pool}")
        samples = self._draw_samples(rng)
        lengths = [sample.num_tokens for sample in samples]
        chosen = batches_by_length(lengths, max_tokens=self._recipe.schedule.batch_tokens, padded=False)
        batches = [[samples[index] for index in indices] for indices in chosen]
        rng.shuffle(batches)
        return batches

    def _draw_samples(self, rng: random.Random) -> list[EncodedSample]:
        """As many samples as a pool holds. Those that are too long are drawn anew."""
        limit = self._recipe.architecture.max_tokens
        samples: list[EncodedSample] = []
        while len(samples) < self._recipe.schedule.pool_examples:
            try:
                sample = self._sample_encoder.encode(self._mixture.draw(rng))
            except LabelsIndistinguishable:  # `café` and `cafe`
                continue
            if len(sample.source) <= limit and len(sample.target) <= limit:
                samples.append(sample)
        return samples
