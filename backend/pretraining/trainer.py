"""Trains the bundled checkpoint: see `bundle` for what it is, `learner` for its losses, `mixture` for its data.

On CPU several processes with one thread each share weights and gradients in memory, and each updates its part of the
weights (as ZeRO does, arXiv:1910.02054). This is much faster than threads, above all on a machine that does other
things too: processes wait for each other once a step, threads at every matrix product. Weights are bf16 where the
processor has it, the optimiser's copies float32. What is published is the moving average of the weights.

A run is a function of recipe, corpora and number of processes, and can be stopped and resumed at any step.
"""

import json
import math
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import EncoderDecoderModel

from backend.engine.codec import Codec, Limits
from backend.engine.draft_head import DraftHead
from backend.engine.family import BertToBertFamily
from backend.engine.tagger import Tagger, WordsQuestion
from backend.errors import LabelsIndistinguishable
from backend.evaluation.accuracy import counted, score
from backend.evaluation.charts import write_curve
from backend.evaluation.corpora import Corpus, read_corpora
from backend.ner.bio import Sentence
from backend.ner.prompt import PromptFormat
from backend.pretraining.checkpoint import Built, build, build_from, export, minilm_folder
from backend.pretraining.losses import Batch, Learner, collate
from backend.pretraining.meanings import types_of
from backend.pretraining.mixture import Mixture
from backend.pretraining.recipe import Recipe
from backend.pretraining.schemas import Types
from backend.pretraining.tokenizer import Encoded, Speller
from backend.pretraining.written import WRITTEN, read_unseen_types, written_corpora

_AVERAGE_EVERY_STEPS = 4


# -- data


def hold_out(corpora: Sequence[Corpus], recipe: Recipe) -> tuple[list[Corpus], list[Corpus]]:
    """Corpora to train on, and the same corpora with a part of their train split as `dev` that the former lack.

    Which sentences is decided by the recipe's seed alone. Corpora without a share in the mixture are left out.
    """
    training, chosen_by = [], []
    for corpus in corpora:
        if corpus.family not in recipe.mixture.shares:
            continue
        order = list(range(len(corpus.train)))
        random.Random(f"{recipe.seed}/held out/{corpus.name}").shuffle(order)
        number = min(recipe.held_out_max, int(recipe.held_out * len(order)))
        held = {*order[:number]}
        training.append(replace(corpus, train=tuple(s for i, s in enumerate(corpus.train) if i not in held)))
        chosen_by.append(replace(corpus, dev=tuple(corpus.train[i] for i in sorted(held))))
    return training, chosen_by


def with_dev(corpora: Sequence[Corpus]) -> list[Corpus]:
    """The corpora with their published dev splits, where there are any, as more to train on."""
    return [replace(corpus, train=corpus.train + corpus.dev, dev=()) for corpus in corpora]


def materials(corpora_folder: Path, recipe: Recipe) -> tuple[list[Corpus], list[Corpus]]:
    """What is trained on, and what its `dev` is chosen by: `hold_out`, and the written corpus if it has a share."""
    training, chosen_by = hold_out(read_corpora(corpora_folder), recipe)
    training = with_dev(training)
    if WRITTEN in recipe.mixture.shares:
        written = written_corpora()
        training.append(written[0])
        chosen_by += [replace(corpus, dev=corpus.dev[: recipe.written_held_out_max]) for corpus in written]
    return training, chosen_by


class Stream:
    """Batches for one process, for ever; where it stands is `pool` and `taken`."""

    def __init__(
        self, mixture: Mixture, speller: Speller, recipe: Recipe, rank: int, pool: int = 0, taken: int = 0
    ) -> None:
        """Goes on behind the first `taken` batches of pool number `pool`."""
        self.pool, self.taken = pool, taken
        self._mixture, self._speller, self._recipe, self._rank = mixture, speller, recipe, rank
        self._batches = self._draw_pool()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self.taken == len(self._batches):
                self.pool, self.taken = self.pool + 1, 0
                self._batches = self._draw_pool()
            self.taken += 1
            yield collate(self._batches[self.taken - 1], self._speller)

    def _draw_pool(self) -> list[list[Encoded]]:
        rng = random.Random(f"{self._recipe.seed}/{self._rank}/{self.pool}")
        schedule, limit = self._recipe.schedule, self._recipe.architecture.max_tokens
        encoded: list[Encoded] = []
        while len(encoded) < schedule.pool_examples:
            try:
                example = self._speller.encode(self._mixture.draw(rng))
            except LabelsIndistinguishable:  # `café` and `cafe`
                continue
            if len(example.source) <= limit and len(example.target) <= limit:
                encoded.append(example)
        encoded.sort(key=lambda example: example.num_tokens)
        batches: list[list[Encoded]] = [[]]
        room = schedule.batch_tokens
        for example in encoded:
            if batches[-1] and example.num_tokens > room:
                batches.append([])
                room = schedule.batch_tokens
            batches[-1].append(example)
            room -= example.num_tokens
        rng.shuffle(batches)
        return batches


# -- training


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the processes of a run have in common. `barrier` is None where there is one process only."""

    weights: Tensor  # (weights,), what forward and backward run on
    average: Tensor  # (weights,), filled when it is asked for
    gradients: Tensor  # (processes, weights)
    norms: Tensor  # (processes,), each one's squared part
    stop: Tensor  # (1,), set by the first process
    barrier: Any

    def wait(self) -> None:
        if self.barrier is not None:
            self.barrier.wait()


@dataclass(frozen=True, slots=True)
class _Run:
    """What to do, as the processes are told."""

    recipe: Recipe
    corpora_folder: Path
    encoder_folder: Path
    begin_from: Path | None
    types: Types | None
    out: Path
    stop_after_s: float | None
    quiet: bool


def train(
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
    """Train, or go on where `out/state` says, until the schedule's end, an interrupt or `stop_after_s` of wall time.

    `out` gets the checkpoint folder of the moving average at every report, `training-log.jsonl` and `training.svg`.
    `begin_from` is a checkpoint folder to begin from instead of the encoder alone.
    `device` is `cpu` or `cuda`; by default the latter where there is one.
    Raises CorpusError if the corpora are malformed or lack one that the recipe names.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    processes = recipe.schedule.processes if chosen.type == "cpu" else 1
    encoder_folder = encoder_folder or minilm_folder()
    types = _types(recipe, corpora_folder, encoder_folder)
    run = _Run(recipe, corpora_folder, encoder_folder, begin_from, types, out, stop_after_s, quiet)
    out.mkdir(parents=True, exist_ok=True)
    built = _build_for(run, materials(corpora_folder, recipe)[0])
    num_weights = sum(parameter.numel() for parameter in built.learner.parameters())
    dtype = training_dtype(chosen)
    shared = _Shared(
        weights=torch.zeros(num_weights, dtype=dtype, device=chosen),
        average=torch.zeros(num_weights, dtype=dtype, device=chosen),
        gradients=torch.zeros(processes, num_weights, dtype=dtype, device=chosen),
        norms=torch.zeros(processes),
        stop=torch.zeros(1, dtype=torch.int32),
        barrier=mp.get_context("spawn").Barrier(processes) if processes > 1 else None,
    )
    if processes == 1:
        _train_process(0, run, shared, 1)
        return
    for tensor in (shared.weights, shared.average, shared.gradients, shared.norms, shared.stop):
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    spawn(_train_process, (run, shared, processes), nprocs=processes)  # type: ignore[no-untyped-call]


def training_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the processor computes in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _types(recipe: Recipe, corpora_folder: Path, encoder_folder: Path) -> Types | None:
    """Of the texts that have a schema of their own, if any are trained on."""
    training, _ = materials(corpora_folder, recipe)
    names = [label for corpus in training for sentence in corpus.train for label in sentence.labels]
    return types_of(names, encoder_folder, read_unseen_types()) if names else None


def _build_for(run: _Run, training: Sequence[Corpus]) -> Built:
    if run.begin_from is not None:
        return build_from(run.begin_from, run.recipe)
    sentences = (sentence.words for corpus in training for sentence in corpus.train)
    return build(run.recipe, sentences, run.encoder_folder)


def _train_process(rank: int, run: _Run, shared: _Shared, processes: int) -> None:
    if processes > 1:
        torch.set_num_threads(1)
    trainer = _Trainer(rank, run, shared, processes)
    signal.signal(signal.SIGINT, trainer.interrupt)
    signal.signal(signal.SIGTERM, trainer.interrupt)
    trainer.run_to_end()


class _Part:
    """One weight tensor that a process updates: float32 copies, and its places in the shared buffers."""

    def __init__(self, name: str, parameter: nn.Parameter, place: slice) -> None:
        self.name, self.place = name, place
        self.master = nn.Parameter(parameter.detach().clone().float())
        self.average = self.master.detach().clone()


class _Trainer:
    """One process's part of the run."""

    def __init__(self, rank: int, run: _Run, shared: _Shared, processes: int) -> None:
        self.rank, self.run, self.shared, self.processes = rank, run, shared, processes
        recipe = run.recipe
        self.recipe, self.schedule = recipe, recipe.schedule
        training, self.chosen_by = materials(run.corpora_folder, recipe)
        built = _build_for(run, training)
        self.learner, self.tokenizer, self.speller = built.learner, built.tokenizer, built.speller
        # BERT's fused attention is several times slower than the plain one for short rows on CPU
        for part in (self.learner.model.encoder, self.learner.model.decoder):
            part.set_attn_implementation("eager")
        self.learner.train()
        self.parts = self._share()
        self.optimizer = self._optimizer()
        self.step = 0
        self.trained_s = 0.0
        self.losses: list[dict[str, float]] = []
        self.interrupted = False
        streams = self._resume()
        mixture = Mixture(training, recipe.mixture, recipe.schemas, run.types)
        self.stream = Stream(mixture, self.speller, recipe, rank, *streams)

    def interrupt(self, *_: object) -> None:
        """Stop after the current step, with everything saved."""
        self.interrupted = True

    def _share(self) -> list[_Part]:
        """Move the weights into the shared buffers; returns the parts that this process updates."""
        places, begin = [], 0
        for name, parameter in self.learner.named_parameters():
            places.append((name, parameter, slice(begin, begin + parameter.numel())))
            begin += parameter.numel()
        load = [0] * self.processes
        mine = []
        for name, parameter, place in sorted(places, key=lambda entry: -entry[1].numel()):
            owner = load.index(min(load))
            load[owner] += parameter.numel()
            if owner == self.rank:
                mine.append(_Part(name, parameter, place))
                self.shared.weights[place] = parameter.detach().flatten().to(self.shared.weights)
        for _, parameter, place in places:
            parameter.data = self.shared.weights[place].view(parameter.shape)
            parameter.grad = self.shared.gradients[self.rank][place].view(parameter.shape)
        for part in mine:
            part.master.data = part.master.data.to(self.shared.weights.device)
            part.average = part.average.to(self.shared.weights.device)
        self.places = [(name, place) for name, _, place in places]
        return mine

    def _optimizer(self) -> torch.optim.AdamW:
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for part in self.parts:
            rate = self.schedule.pretrained_rate if part.name.startswith("model.encoder.") else self.schedule.new_rate
            decay = self.schedule.weight_decay if part.master.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(part.master)
        return torch.optim.AdamW(
            [
                {"params": params, "lr": rate, "peak": rate, "weight_decay": decay}
                for (rate, decay), params in groups.items()
            ],
            betas=(0.9, 0.98),
            fused=True,
        )

    # the run

    def run_to_end(self) -> None:
        """All steps that are left."""
        self.shared.wait()
        begun = last_saved = time.monotonic()
        batches = iter(self.stream)
        with tqdm(
            total=self.schedule.steps, initial=self.step, unit="step", disable=self.run.quiet or self.rank > 0
        ) as bar:
            while self.step < self.schedule.steps and not self.shared.stop.item():
                if self.rank == 0 and (self.interrupted or self._out_of_time(begun)):
                    self.shared.stop.fill_(1)
                self._train_step(next(batches))
                bar.update()
                if self.step % self.schedule.report_every_steps == 0 or self.step == self.schedule.steps:
                    self.trained_s += time.monotonic() - last_saved
                    self._report(bar)
                    self._save()
                    last_saved = time.monotonic()
        if self.shared.stop.item():
            self.trained_s += time.monotonic() - last_saved
            self._save()

    def _out_of_time(self, begun: float) -> bool:
        return self.run.stop_after_s is not None and time.monotonic() - begun > self.run.stop_after_s

    def _train_step(self, batch: Batch) -> None:
        shared, schedule = self.shared, self.schedule
        weights = self.recipe.losses
        shared.gradients[self.rank].zero_()
        losses = self.learner.losses(batch.to(shared.weights.device))
        total = (
            losses["decisions"]
            + weights.copy * losses["copy"]
            + weights.draft * losses["draft"]
            + weights.pointer * losses["pointer"]
        )
        total.backward()  # type: ignore[no-untyped-call]
        shared.wait()
        for part in self.parts:
            gradient = shared.gradients[:, part.place].float().mean(0)
            part.master.grad = gradient.view(part.master.shape)
        squares = sum(part.master.grad.square().sum() for part in self.parts if part.master.grad is not None)
        shared.norms[self.rank] = float(squares)
        shared.wait()
        norm = math.sqrt(float(shared.norms.sum()))
        if norm > schedule.clip_norm:
            for part in self.parts:
                assert part.master.grad is not None
                part.master.grad.mul_(schedule.clip_norm / norm)
        rate = schedule.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.step()
        self.step += 1
        for part in self.parts:
            shared.weights[part.place] = part.master.detach().flatten().to(shared.weights.dtype)
        if self.step % _AVERAGE_EVERY_STEPS == 0:
            # an average over all steps so far until there are enough of them
            decay = min(schedule.average_decay, (1 + self.step) / (10 + self.step)) ** _AVERAGE_EVERY_STEPS
            for part in self.parts:
                part.average.lerp_(part.master.detach(), 1 - decay)
        if self.rank == 0:
            self.losses.append({name: float(value.detach()) for name, value in losses.items()})
        shared.wait()

    # reports

    def _report(self, bar: "tqdm[Any]") -> None:
        """Score the moving average on the held-out sentences, and write it out as a checkpoint."""
        averaged = self._averaged()
        held_out = [(corpus, sentence) for corpus in self.chosen_by for sentence in corpus.dev]
        mine = held_out[self.rank :: self.processes]
        folder = self.run.out / "state"
        folder.mkdir(exist_ok=True)
        if self.rank == 0:
            export(averaged, self.tokenizer, self.recipe, self.shared.weights.dtype, self.run.out)
        questions = [WordsQuestion(sentence.words, sentence.labels or corpus.labels) for corpus, sentence in mine]
        family = BertToBertFamily(averaged.model, averaged.head)
        limits = Limits(self.recipe.architecture.max_tokens, self.recipe.architecture.max_tokens)
        codec = Codec(
            self.tokenizer,
            PromptFormat(self.recipe.template),
            limits,
            source_ends_with_eos=True,
            locates_words=True,
            marks_case=self.recipe.architecture.marks_case,
        )
        result = [[row.tags, row.draft] for row in Tagger(family, codec).tag_words(questions)]
        (folder / f"held-out-{self.rank}.json").write_text(json.dumps(result), encoding="utf-8")
        self.shared.wait()
        if self.rank:
            return
        results: list[Any] = [None] * len(held_out)
        for rank in range(self.processes):
            path = folder / f"held-out-{rank}.json"
            results[rank :: self.processes] = json.loads(path.read_text(encoding="utf-8"))
        losses = {name: sum(entry[name] for entry in self.losses) / len(self.losses) for name in self.losses[0]}
        self.losses = []
        families = sorted({corpus.family for corpus, _ in held_out})
        by_decoder = {family: _f1(held_out, [row[0] for row in results], family) for family in families}
        by_draft = {family: _f1(held_out, [row[1] for row in results], family) for family in families}
        entry = {
            "step": self.step,
            "trained_s": round(self.trained_s, 1),
            "rate": round(self.schedule.rate(self.step), 4),
            "losses": {name: round(value, 4) for name, value in losses.items()},
            "f1": {name: round(value, 4) for name, value in by_decoder.items()},
            "draft_f1": {name: round(value, 4) for name, value in by_draft.items()},
        }
        log = self.run.out / "training-log.jsonl"
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        write_curve(log, self.run.out / "training.svg")
        if not self.run.quiet:
            bar.write(json.dumps(entry))

    def _averaged(self) -> Learner:
        """A learner with the moving average of the weights, in the dtype that they are published in."""
        for part in self.parts:
            self.shared.average[part.place] = part.average.flatten().to(self.shared.average.dtype)
        self.shared.wait()
        model: Any = EncoderDecoderModel(config=self.learner.model.config)
        model.to(self.shared.average.dtype)
        model.generation_config = self.learner.model.generation_config
        for part in (model.encoder, model.decoder):
            part.set_attn_implementation("eager")
        head = DraftHead(self.learner.head.label.in_features, self.learner.head.label.out_features)
        averaged = Learner(model, head).to(self.shared.average.dtype)
        for (_, place), parameter in zip(self.places, averaged.parameters(), strict=True):
            parameter.data = self.shared.average[place].view(parameter.shape)
        return averaged.eval()

    # state on disk

    def _save(self) -> None:
        """Write all that a resumed run needs. A run that dies in here resumes from the state before."""
        folder = self.run.out / "state"
        new = folder / f"step-{self.step}"
        if self.rank == 0:
            new.mkdir(parents=True, exist_ok=True)
        self.shared.wait()
        tensors = {}
        for part in self.parts:
            moments = self.optimizer.state[part.master]
            tensors[part.name] = {
                "master": part.master.detach(),
                "average": part.average,
                **{key: moments[key] for key in ("step", "exp_avg", "exp_avg_sq")},
            }
        torch.save(tensors, new / f"weights-{self.rank}.pt")
        (new / f"stream-{self.rank}.json").write_text(json.dumps([self.stream.pool, self.stream.taken]))
        self.shared.wait()
        if self.rank == 0:
            progress = {"step": self.step, "trained_s": self.trained_s, "processes": self.processes}
            (new / "progress.json").write_text(json.dumps(progress))
            temporary = folder / "current.new"
            temporary.write_text(new.name)
            temporary.replace(folder / "current")
            for old in folder.glob("step-*"):
                if old != new:
                    shutil.rmtree(old)
        self.shared.wait()

    def _resume(self) -> tuple[int, int]:
        """Take up the state on disk, if there is one. Returns where the stream goes on."""
        folder = self.run.out / "state"
        if not (folder / "current").exists():
            return 0, 0
        folder = folder / (folder / "current").read_text().strip()
        progress = json.loads((folder / "progress.json").read_text())
        self.step, self.trained_s = progress["step"], progress["trained_s"]
        device = self.shared.weights.device
        tensors: dict[str, dict[str, Tensor]] = {}
        for path in sorted(folder.glob("weights-*.pt")):
            tensors.update(torch.load(path, map_location=device, weights_only=True))
        for part in self.parts:
            saved = tensors[part.name]
            part.master.data, part.average = saved["master"], saved["average"]
            self.optimizer.state[part.master] = {key: saved[key] for key in ("step", "exp_avg", "exp_avg_sq")}
            self.shared.weights[part.place] = part.master.detach().flatten().to(self.shared.weights.dtype)
        streams = [json.loads(path.read_text()) for path in sorted(folder.glob("stream-*.json"))]
        if progress["processes"] == self.processes:
            pool, taken = streams[self.rank]
            return pool, taken
        return max(pool for pool, _ in streams) + 1, 0


def _f1(held_out: Sequence[tuple[Corpus, Sentence]], tags: Sequence[Sequence[str]], family: str) -> float:
    rows = [
        (counted(s.tags, corpus), counted(found, corpus))
        for (corpus, s), found in zip(held_out, tags, strict=True)
        if corpus.family == family
    ]
    return score([gold for gold, _ in rows], [found for _, found in rows]).f1
