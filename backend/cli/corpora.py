"""evaluate, benchmark, train-base, learning-curve: for those who work with corpora and checkpoints."""

import argparse
from pathlib import Path

from backend.errors import InvalidSettings


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add these subcommands."""
    _add_train_base(commands.add_parser("train-base", help="train the bundled checkpoint from corpora"))
    _add_evaluate(
        commands.add_parser("evaluate", help="measure the span F1 of a checkpoint, or of the paper's predictions")
    )
    _add_learning_curve(commands.add_parser("learning-curve", help="measure what accepted annotations improve"))
    _add_benchmark(commands.add_parser("benchmark", help="time every decoder on the same sentences"))


def _add_train_base(parser: argparse.ArgumentParser) -> None:
    parser.description = "To resume a stopped run, give the same --out and --recipe."
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="the corpora, one folder each, in CoNLL format"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where checkpoint, log and state go")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="default: the bundled checkpoint's recipe.json")
    parser.add_argument(
        "--from", dest="begin_from", metavar="NAME", help="begin from this checkpoint (name or folder), not from MiniLM"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is a GPU")
    parser.add_argument(
        "--stop-after-s", type=float, metavar="SECONDS", help="stop after this time; the run can be resumed"
    )
    parser.set_defaults(run=_train_base)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data", type=Path, metavar="FOLDER", help="corpora to tag and score, one folder each, in CoNLL format"
    )
    what.add_argument(
        "--predictions", type=Path, metavar="FILE", help="score a prediction file of the GNER paper, in the paper's way"
    )
    parser.add_argument("--checkpoint", default="gner-mini", help="name, folder or hub id; default gner-mini")
    parser.add_argument("--corpus", action="append", metavar="NAME", help="only this one of --data (may be repeated)")
    parser.add_argument("--split", default="test", help="train, dev or test; default test")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N sentences of each file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--save-scores", action="store_true", help="write the F1 into the checkpoint's gner.json")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="with --predictions: compare words as this tokenizer (folder or hub id) decodes them, as the paper does",
    )
    parser.set_defaults(run=_evaluate)


def _add_learning_curve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="corpora, one folder each")
    parser.add_argument("--corpus", default="crossner-ai", metavar="NAME", help="the corpus to learn")
    parser.add_argument("--kept", default="wikigold", metavar="NAME", help="a corpus that must not be forgotten")
    parser.add_argument("--sizes", default="25,50,100", help="numbers of accepted sentences, separated by commas")
    parser.add_argument("--model", default="gner-mini", help="checkpoint: name, folder or hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="writes FILE.json and FILE.svg")
    parser.set_defaults(run=_learning_curve)


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="corpora, one folder each")
    parser.add_argument(
        "--corpus", default="crossner-ai", metavar="NAME", help="the corpus whose test split is decoded"
    )
    parser.add_argument(
        "--models",
        default="gner-mini,t5-base",
        help="checkpoints; or t5-base, t5-large, llama-7b: models of that size with random weights, whose answers are "
        "replaced by the corpus's labels at equal cost",
    )
    parser.add_argument("--batch", default="1,16", help="batch sizes, separated by commas")
    parser.add_argument("--sentences", type=int, default=32, help="sentences for each measurement")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--window", type=int, default=64, help="tokens that one pass of the exact decoder verifies")
    parser.add_argument(
        "--draft-threshold", type=float, default=0.6, help="a draft below this probability ends the window"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="writes FILE.json and FILE.svg")
    parser.set_defaults(run=_benchmark)


def _train_base(options: argparse.Namespace) -> int:
    from backend.engine.checkpoint import BUNDLED, DEFAULT_MODEL, resolve
    from backend.pretraining import trainer
    from backend.pretraining.recipe import read_recipe

    recipe = read_recipe(options.recipe or BUNDLED / DEFAULT_MODEL / "recipe.json")
    trainer.pretrain(
        recipe,
        options.data,
        options.out,
        begin_from=None if options.begin_from is None else resolve(options.begin_from).path,
        device=options.device,
        stop_after_s=options.stop_after_s,
    )
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from backend.evaluation import checkpoint_scores, paper_scores
    from backend.evaluation.corpora import read_corpora
    from backend.pretraining.written import written_corpora

    if options.predictions is not None:
        print(paper_scores.evaluate_predictions(options.predictions, options.tokenizer))
        return 0
    checkpoint_scores.evaluate_checkpoint(
        options.checkpoint,
        [*read_corpora(options.data), *written_corpora()],
        only=options.corpus,
        split=options.split,
        limit=options.limit,
        device=options.device,
        dtype=options.dtype,
        save_scores=options.save_scores,
    )
    return 0


def _learning_curve(options: argparse.Namespace) -> int:
    from backend.evaluation import learning_curve

    learning_curve.learning_curve(
        model=options.model,
        data=options.data,
        corpus=options.corpus,
        kept=options.kept,
        sizes=_numbers("--sizes", options.sizes),
        device=options.device,
        out=options.out,
    )
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    from backend.evaluation import decoding_speed

    batch_sizes = _numbers("--batch", options.batch)
    decoding_speed.benchmark(
        data=options.data,
        corpus=options.corpus,
        models=[model.strip() for model in options.models.split(",")],
        batch_sizes=batch_sizes,
        sentences=options.sentences,
        device=options.device,
        dtype=options.dtype,
        window=options.window,
        draft_threshold=options.draft_threshold,
        out=options.out,
    )
    return 0


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InvalidSettings(f"{name} {text!r}: expected numbers separated by commas") from None
