"""Training, on corpora of a few sentences and an encoder of two layers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from backend.engine.draft_head import DraftHead
from backend.errors import CheckpointError, CorpusError, InvalidSettings
from backend.evaluation.corpora import Corpus, read_corpora
from backend.ner.bio import Sentence
from backend.ner.casing import CAPITAL, NUM_KINDS
from backend.pretraining.checkpoint import build, build_from, export
from backend.pretraining.losses import collate
from backend.pretraining.mixture import Example
from backend.pretraining.recipe import read_recipe, write_recipe
from backend.pretraining.trainer import hold_out, train, with_dev
from tests.support import small_recipe as small

RECIPE = Path(__file__).parents[2] / "backend/models/gner-mini/recipe.json"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_corpora(tmp_path_factory.mktemp("corpora") / "ner")


def test_every_loss_falls_on_a_batch_seen_again_and_again(encoder: Path) -> None:
    built = build(small.recipe(), [("Ada",)], encoder)
    for part in (built.learner.model.encoder, built.learner.model.decoder):
        part.set_attn_implementation("eager")
    tags = ("B-sad disease", "I-sad disease", "O", "B-place")
    examples = [
        Example(("person", "place"), ("Ada", "left", "Rome", "."), ("B-person", "O", "B-place", "O")),
        Example(("place", "sad disease"), ("heart", "pain", "in", "Oslo"), tags),
    ]
    batch = collate([built.speller.encode(example) for example in examples], built.speller)
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
    short = built.speller.encode(Example(("person",), ("Ada",), ("B-person",)))
    long = built.speller.encode(
        Example(("person", "place"), ("Ada", "left", "Rome") * 4, ("B-person", "O", "B-place") * 4)
    )
    with torch.no_grad():
        alone = built.learner.losses(collate([short], built.speller))["draft"]
        words = len(short.tags), len(long.tags)
        together = built.learner.losses(collate([short, long], built.speller))["draft"]
        other = built.learner.losses(collate([long], built.speller))["draft"]
    assert together.item() == pytest.approx((alone * words[0] + other * words[1]).item() / sum(words), abs=1e-4)


def test_an_exported_folder_loads_as_it_was(encoder: Path, tmp_path: Path) -> None:
    recipe = small.recipe()
    built = build(recipe, [("Ada",)], encoder)
    export(built.learner, built.tokenizer, recipe, torch.float32, tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoding = tokenizer(["person, place : ada left rome ."], return_tensors="pt")
    assert tokenizer.convert_ids_to_tokens(encoding["input_ids"][0])[:5] == ["[CLS]", "person", ",", "place", ":"]
    target = torch.tensor([[tokenizer.cls_token_id, *tokenizer.encode("ada(O) left(O)", add_special_tokens=False)]])
    built.learner.eval()
    with torch.no_grad():
        expected = built.learner.model(**encoding, decoder_input_ids=target).logits
        assert torch.equal(model(**encoding, decoder_input_ids=target).logits, expected)
        assert model.generate(**encoding, max_length=5)[0, 0] == tokenizer.cls_token_id
    names = load_file(tmp_path / "model.safetensors")
    embeddings = [name for name in names if names[name].shape[0] == len(tokenizer) and names[name].dim() == 2]
    assert len(embeddings) == 2  # one each for encoder and decoder; the decoder's is also its output
    head = DraftHead.load(tmp_path / "draft_head.safetensors")
    assert torch.equal(head.label.weight, built.learner.head.label.weight)
    described = json.loads((tmp_path / "gner.json").read_text())
    assert described["template"] == recipe.template
    assert read_recipe(tmp_path / "recipe.json") == recipe


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_stopped_run_goes_on_where_it_stopped(encoder: Path, corpora: Path, tmp_path: Path) -> None:
    whole = small.recipe(steps=6, report_every_steps=3)
    train(whole, corpora, tmp_path / "whole", encoder_folder=encoder, quiet=True)
    train(whole, corpora, tmp_path / "parts", encoder_folder=encoder, stop_after_s=0.0, quiet=True)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    train(whole, corpora, tmp_path / "parts", encoder_folder=encoder, quiet=True)
    a, b = _weights(tmp_path / "whole"), _weights(tmp_path / "parts")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [
        [json.loads(line) for line in (tmp_path / run / "training-log.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert [entry["step"] for entry in logs[0]] == [3, 6] == [entry["step"] for entry in logs[1]]
    assert logs[0][1]["f1"] == logs[1][1]["f1"]
    assert logs[0][0]["f1"].keys() == {"drugs", "news"}
    assert "<svg" in (tmp_path / "whole" / "training.svg").read_text()


@pytest.mark.slow  # two new processes, each of which imports torch and waits for the other at every step
def test_two_processes_train_one_model(encoder: Path, corpora: Path, tmp_path: Path) -> None:
    recipe = small.recipe(steps=4, processes=2)
    train(recipe, corpora, tmp_path, encoder_folder=encoder, quiet=True)
    before = build(recipe, _training_words(corpora), encoder).learner.model.state_dict()
    after = _weights(tmp_path)
    # both processes' parts have moved
    moved = [name for name in after if not torch.equal(after[name].float(), before[name].to(after[name].dtype).float())]
    assert "encoder.embeddings.word_embeddings.weight" in moved
    assert "decoder.bert.embeddings.word_embeddings.weight" in moved


def _training_words(folder: Path) -> list[tuple[str, ...]]:
    training, _ = hold_out(read_corpora(folder), small.recipe())
    return [sentence.words for corpus in training for sentence in corpus.train]


def test_what_is_held_out_is_never_trained_on(corpora: Path) -> None:
    everything = {corpus.name: {*corpus.train} for corpus in read_corpora(corpora)}
    training, chosen_by = hold_out(read_corpora(corpora), small.recipe())
    for corpus, held in zip(training, chosen_by, strict=True):
        assert not {*corpus.train} & {*held.dev}
        assert {*corpus.train} | {*held.dev} == everything[corpus.name]
    assert any(corpus.dev for corpus in chosen_by)


def test_a_corpus_that_the_recipe_wants_must_be_there(encoder: Path, corpora: Path, tmp_path: Path) -> None:
    recipe = small.recipe()
    wanted = replace(recipe, mixture=replace(recipe.mixture, shares={"news": 1.0, "tweets": 1.0}))
    with pytest.raises(CorpusError, match="tweets"):
        train(wanted, corpora, tmp_path, encoder_folder=encoder, quiet=True)


def test_rates_rise_stay_and_fall() -> None:
    schedule = replace(small.recipe().schedule, steps=100, warmup_steps=10, decay_steps=20)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(9) == schedule.rate(50) == schedule.rate(80) == 1.0
    assert schedule.rate(90) == pytest.approx(0.5)
    assert schedule.rate(99) == pytest.approx(0.05)


def test_the_bundled_recipe_never_trains_on_the_zero_shot_corpus() -> None:
    recipe = read_recipe(RECIPE)
    assert "crossner-ai" not in recipe.mixture.shares
    assert {*recipe.mixture.foreign} <= {*recipe.mixture.shares}


def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    with pytest.raises(InvalidSettings, match="cannot read"):
        read_recipe(path)
    write_recipe(small.recipe(), path)
    raw = json.loads(path.read_text())
    raw["schedule"]["stepz"] = raw["schedule"].pop("steps")
    path.write_text(json.dumps(raw))
    with pytest.raises(InvalidSettings, match=r"Schedule lacks \['steps'\] and does not know \['stepz'\]"):
        read_recipe(path)


def test_published_dev_splits_are_trained_on_test_splits_never() -> None:
    first, second, third = (Sentence((word,), ("O",)) for word in ("a", "b", "c"))
    [corpus] = with_dev([Corpus("x", ("thing",), train=(first,), dev=(second,), test=(third,))])
    assert (corpus.train, corpus.test) == ((first, second), (third,))


def test_a_run_begins_from_a_checkpoint(encoder: Path, corpora: Path, tmp_path: Path) -> None:
    first = replace(small.recipe(), architecture=replace(small.recipe().architecture, vocabulary_size=100))
    train(first, corpora, tmp_path / "first", encoder_folder=encoder, quiet=True)
    second = replace(first, architecture=replace(first.architecture, vocabulary_size=_vocabulary(tmp_path / "first")))
    second = replace(second, architecture=replace(second.architecture, marks_case=True))
    built = build_from(tmp_path / "first", second)
    before, begun = _weights(tmp_path / "first"), built.learner.model.state_dict()
    kinds = begun["encoder.embeddings.token_type_embeddings.weight"]
    row = before["encoder.embeddings.token_type_embeddings.weight"][0].float()
    assert torch.equal(kinds, row.expand(NUM_KINDS, -1))
    same = [name for name in before if "token_type" not in name or name.startswith("decoder")]
    assert all(torch.equal(begun[name], before[name].float()) for name in same)

    train(second, corpora, tmp_path / "second", encoder_folder=encoder, begin_from=tmp_path / "first", quiet=True)
    assert json.loads((tmp_path / "second" / "gner.json").read_text())["marks_case"] is True
    after = _weights(tmp_path / "second")["encoder.embeddings.token_type_embeddings.weight"]
    assert after.shape[0] == NUM_KINDS
    assert not torch.equal(after[0], after[1])  # Ada is a Capital, left is not
    again = build_from(tmp_path / "second", second).learner.model.state_dict()
    assert torch.equal(again["encoder.embeddings.token_type_embeddings.weight"], after.float())


def _vocabulary(folder: Path) -> int:
    size: int = json.loads((folder / "config.json").read_text())["vocab_size"]
    return size


def test_a_folder_to_begin_from_must_suit_the_recipe(encoder: Path, tmp_path: Path) -> None:
    recipe = small.recipe()
    with pytest.raises(CheckpointError, match="missing"):
        build_from(tmp_path / "missing", recipe)
    built = build(recipe, [("Ada",)], encoder)
    export(built.learner, built.tokenizer, recipe, torch.float32, tmp_path)
    size = _vocabulary(tmp_path)
    deeper = replace(recipe.architecture, vocabulary_size=size, decoder_layers=3)
    with pytest.raises(InvalidSettings, match="decoder_layers 2, not 3"):
        build_from(tmp_path, replace(recipe, architecture=deeper))


def test_kinds_reach_the_batch_only_if_the_recipe_says_so(encoder: Path) -> None:
    example = Example(("person",), ("Ada", "left"), ("B-person", "O"))
    for marks_case, expected in ((False, 0), (True, CAPITAL)):
        recipe = small.recipe()
        recipe = replace(recipe, architecture=replace(recipe.architecture, marks_case=marks_case))
        built = build(recipe, [("Ada",)], encoder)
        encoded = built.speller.encode(example)
        batch = collate([encoded], built.speller)
        assert int(batch.source_kinds[0, encoded.word_positions[0]]) == expected
        assert int(batch.source_kinds.sum()) == expected


def test_the_first_recipe_can_still_be_read() -> None:
    first = read_recipe(RECIPE.parents[2] / "pretraining/recipes/gner-mini-1.json")
    assert not first.architecture.marks_case
    assert "written" not in first.mixture.shares
