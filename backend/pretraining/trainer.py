"""Trains the bundled checkpoint.

The model is described in `checkpoint`, its losses in `losses`, and its data in `mixture` and `data`.

On a CPU, several processes with one thread each share the weights and gradients in memory (see `shared_weights`). This
is much faster than several threads, above all on a machine that does other things too: processes wait for each other
once per step, threads at every matrix product. The moving average of the weights is what is published.

A run is determined by its recipe, its corpora and its number of processes. It can be stopped and resumed at any step.
"""

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import EncoderDecoderModel

from backend.engine.draft_head import DraftHead
from backend.evaluation.charts import write_curve
from backend.evaluation.corpora import Corpus
from backend.pretraining.checkpoint import Built, build, build_from, export, minilm_folder
from backend.pretraining.data import Stream, materials, with_dev
from backend.pretraining.held_out import HeldOut, HeldOutF1
from backend.pretraining.losses import Batch, Learner
from backend.pretraining.meanings import entity_types
from backend.pretraining.mixture import Mixture
from backend.pretraining.recipe import Recipe
from backend.pretraining.saved_state import Progress, read_state, write_state
from backend.pretraining.schemas import EntityTypes
from backend.pretraining.shared_weights import SharedBuffers, SharedOptimizer
from backend.pretraining.written import read_synonyms, read_unseen_types


@dataclass(frozen=True, slots=True)
class _RunOptions:
    """What every process of a run must know."""

    recipe: Recipe
    corpora_folder: Path
    encoder_folder: Path
    begin_from: Path | None
    types: EntityTypes | None
    out: Path
    stop_after_s: float | None
    quiet: bool


def pretrain(
    recipe: Recipe,
    corpora_folder: Path,
    out: Path,
    *,
    encoder_folder: Path | None = None,
    begin_from: Path | None = None,
    device: str | None = None,
    stop_after_s: float | None = None,
    quiet: bool = False,
) -> None:
    """Train until the end of the schedule, an interrupt, or `stop_after_s` of wall time. Resumes from `out/state`.

    At every report, `out` gets the checkpoint of the moving average, `training-log.jsonl` and `training.svg`.
    `begin_from` is the folder of a checkpoint to start from, instead of the encoder alone.
    `device` is `cpu` or `cuda`; the default is `cuda` where it is available.
    Raises CorpusError if the corpora are malformed or lack one that the recipe names.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    processes = recipe.schedule.processes if chosen.type == "cpu" else 1
    encoder_folder = encoder_folder or minilm_folder()
    training, _ = materials(corpora_folder, recipe)
    types = _types_of(training, encoder_folder)
    options = _RunOptions(recipe, corpora_folder, encoder_folder, begin_from, types, out, stop_after_s, quiet)
    out.mkdir(parents=True, exist_ok=True)
    built = _build_for(options, training)
    num_weights = sum(parameter.numel() for parameter in built.learner.parameters())
    shared = SharedBuffers.allocate(num_weights, processes, chosen, training_dtype(chosen))
    if processes == 1:
        _train_process(0, options, shared)
    else:
        spawn(_train_process, (options, shared), nprocs=processes)  # type: ignore[no-untyped-call]


def training_dtype(device: torch.device) -> torch.dtype:
    """bf16 if the processor computes in it, otherwise float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _types_of(training: Sequence[Corpus], encoder_folder: Path) -> EntityTypes | None:
    """The types of the texts that have their own schema; None if there are no such texts."""
    names = [label for corpus in training for sentence in corpus.train for label in sentence.labels]
    return entity_types(names, encoder_folder, read_unseen_types(), read_synonyms()) if names else None


def _build_for(options: _RunOptions, training: Sequence[Corpus]) -> Built:
    if options.begin_from is not None:
        return build_from(options.begin_from, options.recipe)
    sentences = (sentence.words for corpus in training for sentence in corpus.train)
    return build(options.recipe, sentences, options.encoder_folder)


def _train_process(rank: int, options: _RunOptions, shared: SharedBuffers) -> None:
    if shared.processes > 1:
        torch.set_num_threads(1)
    trainer = _Trainer(rank, options, shared)
    signal.signal(signal.SIGINT, trainer.interrupt)
    signal.signal(signal.SIGTERM, trainer.interrupt)
    trainer.run_to_end()


class _Trainer:
    """One process's part of a run. The processes go through the steps, reports and saves together."""

    def __init__(self, rank: int, options: _RunOptions, shared: SharedBuffers) -> None:
        self._rank, self._options, self._shared = rank, options, shared
        self._recipe, self._schedule = options.recipe, options.recipe.schedule
        training, held_out = materials(options.corpora_folder, options.recipe)
        built = _build_for(options, training)
        self._learner, self._tokenizer = built.learner, built.tokenizer
        _use_eager_attention(self._learner.model)
        self._learner.train()
        set_dropout(self._learner, self._schedule.dropout)
        self._state_folder = options.out / "state"
        self._held_out = HeldOut(held_out, self._recipe, self._tokenizer, self._state_folder, rank, shared)
        self._optimizer = SharedOptimizer(self._learner, shared, rank, self._schedule)
        self._step = 0
        self._trained_s = 0.0
        self._losses: list[dict[str, float]] = []  # of the first process, since the last report
        self._interrupted = False
        pool, taken = self._resume()
        mixture = Mixture(with_dev(training), self._recipe.mixture, self._recipe.schemas, options.types)
        self._stream = Stream(mixture, built.sample_encoder, self._recipe, rank, pool, taken)

    def _resume(self) -> tuple[int, int]:
        """Load the state on disk, if there is one. Returns the position at which the stream continues."""
        saved = read_state(self._state_folder, self._shared.weights.device)
        if saved is None:
            return 0, 0
        self._step, self._trained_s = saved.progress.step, saved.progress.trained_s
        self._optimizer.load_state(saved.weights)
        return saved.stream_position(self._rank, self._shared.processes)

    def interrupt(self, *_: object) -> None:
        """Save everything after the current step, and stop."""
        self._interrupted = True

    def run_to_end(self) -> None:
        """Do all remaining steps."""
        schedule, stop = self._schedule, self._shared.stop
        self._shared.wait()
        begun = last_saved = time.monotonic()
        batches = iter(self._stream)
        hides_bar = self._options.quiet or self._rank > 0
        with tqdm(total=schedule.steps, initial=self._step, unit="step", disable=hides_bar) as bar:
            while self._step < schedule.steps and not stop.item():
                if self._rank == 0 and (self._interrupted or self._out_of_time(begun)):
                    stop.fill_(1)
                self._train_step(next(batches))
                bar.update()
                if self._step % schedule.report_every_steps == 0 or self._step == schedule.steps:
                    self._trained_s += time.monotonic() - last_saved
                    self._report(bar)
                    self._save()
                    last_saved = time.monotonic()
        if stop.item():
            self._trained_s += time.monotonic() - last_saved
            self._save()

    def _out_of_time(self, begun: float) -> bool:
        limit = self._options.stop_after_s
        return limit is not None and time.monotonic() - begun > limit

    def _train_step(self, batch: Batch) -> None:
        weights = self._recipe.losses
        self._optimizer.zero_gradients()
        torch.manual_seed(self._seed_of_step())
        losses = self._learner.losses(batch.to(self._shared.weights.device), weights.smoothing)
        total = (
            losses["decisions"]
            + weights.copy * losses["copy"]
            + weights.draft * losses["draft"]
            + weights.pointer * losses["pointer"]
        )
        total.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step(self._step)
        self._step += 1
        if self._rank == 0:
            self._losses.append({name: float(value.detach()) for name, value in losses.items()})

    def _seed_of_step(self) -> int:
        """For what this step drops out. It makes a resumed run equal to one that was never stopped."""
        return (self._recipe.seed * self._schedule.steps + self._step) * self._shared.processes + self._rank

    def _save(self) -> None:
        write_state(
            self._state_folder,
            self._rank,
            Progress(self._step, self._trained_s, self._shared.processes),
            self._optimizer.state(),
            (self._stream.pool, self._stream.taken),
            self._shared.wait,
        )

    # reports

    def _report(self, bar: "tqdm[Any]") -> None:
        """Write the moving average as a checkpoint, and its losses and held-out scores to the log."""
        averaged = self._averaged()
        if self._rank == 0:
            export(averaged, self._tokenizer, self._recipe, self._shared.weights.dtype, self._options.out)
        self._held_out.tag_own_share(averaged)
        self._shared.wait()
        if self._rank > 0:
            return
        entry = self._log_entry(self._held_out.score())
        self._losses = []
        log = self._options.out / "training-log.jsonl"
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        write_curve(log, self._options.out / "training.svg")
        if not self._options.quiet:
            bar.write(json.dumps(entry))

    def _averaged(self) -> Learner:
        """A learner with the moving average of the weights, in the dtype of the published checkpoint."""
        dtype = self._shared.average.dtype
        model: Any = EncoderDecoderModel(config=self._learner.model.config)
        model.to(dtype)
        model.generation_config = self._learner.model.generation_config
        _use_eager_attention(model)
        label = self._learner.head.label
        averaged = Learner(model, DraftHead(label.in_features, label.out_features)).to(dtype)
        self._optimizer.load_average(averaged)
        return averaged.eval()

    def _log_entry(self, f1: HeldOutF1) -> dict[str, Any]:
        """A line of the training log."""
        losses = {name: sum(step[name] for step in self._losses) / len(self._losses) for name in self._losses[0]}
        return {
            "step": self._step,
            "trained_s": round(self._trained_s, 1),
            "rate": round(self._schedule.rate(self._step), 4),
            "losses": {name: round(value, 4) for name, value in losses.items()},
            "f1": {name: round(value, 4) for name, value in f1.decoder.items()},
            "draft_f1": {name: round(value, 4) for name, value in f1.draft.items()},
        }


def set_dropout(learner: Learner, share: float) -> None:
    """Let the encoder drop out this share, 0..1, while it trains. Its config, which is published, keeps 0.

    The decoder mostly copies, which it learns more slowly if it drops out: see docs/lab-notes.md.
    """
    for module in learner.model.encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share


def _use_eager_attention(model: Any) -> None:
    """BERT's fused attention is several times slower than the plain one for short rows on a CPU."""
    for part in (model.encoder, model.decoder):
        part.set_attn_implementation("eager")
