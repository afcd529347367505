"""Adapters on tiny models: the base stays equal bit for bit, saved adapters load again, damaged ones are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from backend.engine.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from backend.engine.adapters import Adapters, AdapterSettings
from backend.engine.codec import Codec
from backend.engine.decode import ExactDecoder
from backend.engine.family import Family
from backend.errors import AdapterError
from tests.support import tiny

LABELS = ("person", "city")
WORDS = ["Marie", "Curie", "worked", "in", "Paris"]
SETTINGS = AdapterSettings(rank=4, alpha=8, seed=3)


def hidden(family: Family, codec: Codec) -> torch.Tensor:
    """Hidden states of the target, which depend on those of the source."""
    prompt = codec.encode(LABELS, WORDS)
    with torch.inference_mode():
        state = family.begin([prompt])
        feed = state.feed([[state.start_tokens[0], *prompt.codes[0].forced]], family.model.device)
        return family.forward(state, feed)


def decoded(family: Family, codec: Codec) -> Any:
    return ExactDecoder(family, 64).decode([codec.encode(LABELS, WORDS)])


def randomise(parameters: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


def saved(name: str, family: Family, folder: Path, seed: int = 1) -> Path:
    """An adapter that changes something, in a folder."""
    adapters = Adapters(family)
    randomise(adapters.new(name, SETTINGS), seed)
    folder.mkdir(parents=True, exist_ok=True)
    adapters.save(name, folder)
    return folder


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_with_no_adapter_in_force_the_base_answers_bit_for_bit(name: str) -> None:
    family, codec = tiny.FAMILIES[name]()
    before, answer = hidden(family, codec), decoded(family, codec)
    adapters = Adapters(family)
    parameters = adapters.new("one", SETTINGS)
    assert torch.equal(hidden(family, codec), before), "an untrained adapter changes nothing"
    randomise(parameters, 1)
    assert not torch.equal(hidden(family, codec), before)
    adapters.activate(None)
    assert adapters.active is None
    assert torch.equal(hidden(family, codec), before)
    assert decoded(family, codec) == answer


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_saved_adapter_comes_back(name: str, tmp_path: Path) -> None:
    family, codec = tiny.FAMILIES[name]()
    saved("one", family, tmp_path / "one")
    trained = hidden(family, codec)
    other, _ = tiny.FAMILIES[name]()
    Adapters(other).activate("p2.v1", tmp_path / "one")
    assert torch.equal(hidden(other, codec), trained)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        family, _ = tiny.bert()
        saved("any", family, tmp_path / folder)
    for file in (WEIGHTS_FILE, CONFIG_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # PEFT asks transformers by its old name
def test_peft_itself_reads_what_is_saved(tmp_path: Path) -> None:
    family, codec = tiny.t5()
    saved("one", family, tmp_path)
    trained = hidden(family, codec)
    other, _ = tiny.t5()
    PeftModel.from_pretrained(other.model, tmp_path)  # in place
    assert torch.allclose(hidden(other, codec), trained, atol=1e-6)


def test_each_of_several_is_itself(tmp_path: Path) -> None:
    family, codec = tiny.bert()
    base = hidden(family, codec)
    alone = {}
    for seed, name in enumerate(("one", "two", "three")):
        other, _ = tiny.bert()
        saved(name, other, tmp_path / name, seed)
        alone[name] = hidden(other, codec)
    adapters = Adapters(family)
    for active in ("one", "two", None, "three", "one", None, "two"):
        adapters.activate(active, None if active is None else tmp_path / active)
        assert torch.equal(hidden(family, codec), base if active is None else alone[active]), active


def test_the_least_recently_used_leaves(tmp_path: Path) -> None:
    family, codec = tiny.bert()
    for seed, name in enumerate(("one", "two", "three")):
        other, _ = tiny.bert()
        saved(name, other, tmp_path / name, seed)
    adapters = Adapters(family, max_loaded=2)
    adapters.activate("one", tmp_path / "one")
    adapters.activate("two", tmp_path / "two")
    adapters.activate("one")
    one = hidden(family, codec)
    adapters.activate("three", tmp_path / "three")
    adapters.activate("one")
    assert torch.equal(hidden(family, codec), one)
    with pytest.raises(AdapterError, match="'two' is not loaded, and no folder"):
        adapters.activate("two")


def test_a_child_begins_as_its_parent(tmp_path: Path) -> None:
    family, codec = tiny.bert()
    saved("parent", family, tmp_path)
    trained = hidden(family, codec)
    other, _ = tiny.bert()
    adapters = Adapters(other)
    parameters = adapters.new("child", AdapterSettings(rank=2), tmp_path)
    assert torch.equal(hidden(other, codec), trained)
    assert {parameter.requires_grad for parameter in parameters} == {True}
    assert {min(parameter.shape) for parameter in parameters} == {4}, "the parent's rank"


def test_only_the_new_adapter_learns(tmp_path: Path) -> None:
    family, _ = tiny.bert()
    saved("first", family, tmp_path)
    other, codec = tiny.bert()
    adapters = Adapters(other)
    adapters.activate("first", tmp_path)
    parameters = adapters.new("second", SETTINGS)
    prompt = codec.encode(LABELS, WORDS)
    state = other.begin([prompt])
    loss = other.forward(state, state.feed([state.start_tokens], other.model.device)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    learning = {id(parameter) for parameter in other.model.parameters() if parameter.grad is not None}
    assert learning <= {id(parameter) for parameter in parameters}
    assert learning


def test_scaled_it_is_between_the_base_and_itself() -> None:
    family, codec = tiny.bert()
    base = hidden(family, codec)
    adapters = Adapters(family)
    randomise(adapters.new("one", SETTINGS), 1)
    layer = family.model.get_submodule("encoder.encoder.layer.0.attention.self.query")
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    without, whole = layer.base_layer(states), layer(states)
    adapters.scale("one", 0.25)
    assert torch.allclose(layer(states), 0.75 * without + 0.25 * whole, atol=1e-3)
    adapters.scale("one", 0.0)
    assert torch.equal(hidden(family, codec), base)
    with pytest.raises(AdapterError, match="'two' is not loaded"):
        adapters.scale("two", 1.0)


def test_dropped_is_gone() -> None:
    family, codec = tiny.bert()
    base = hidden(family, codec)
    adapters = Adapters(family)
    randomise(adapters.new("one", SETTINGS), 1)
    adapters.drop("one")
    assert adapters.active is None
    assert torch.equal(hidden(family, codec), base)
    with pytest.raises(AdapterError, match="'one' is not loaded"):
        adapters.drop("one")
    adapters.new("one", SETTINGS)
    with pytest.raises(AdapterError, match="'one' is loaded already"):
        adapters.new("one", SETTINGS)


def test_the_head_is_not_adapted(tmp_path: Path) -> None:
    for name in tiny.FAMILIES:
        family, _ = tiny.FAMILIES[name]()
        saved("one", family, tmp_path / name)
        layers = {key.rsplit(".", 2)[0] for key in load_file(tmp_path / name / WEIGHTS_FILE)}
        assert not [layer for layer in layers if "lm_head" in layer or ".cls." in layer]
        assert len(layers) >= 7 * 2


def _truncate(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])


def _lose_config(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()


def _lose_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()


def _odd_config(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps({"r": "4", "lora_alpha": 8}), encoding="utf-8")


def _list_config(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("[]", encoding="utf-8")


def _lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / WEIGHTS_FILE)


def _not_a_number(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors[sorted(tensors)[0]][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "cannot read the adapter"),
        (_lose_config, "cannot read the adapter"),
        (_lose_weights, "cannot read the adapter"),
        (_list_config, "cannot read the adapter"),
        (_odd_config, "r is '4', lora_alpha is 8"),
        (_lose_a_tensor, "1 of its tensors differ"),
        (_not_a_number, "not finite"),
    ],
)
def test_a_damaged_adapter_is_refused_and_the_one_before_goes_on(damage: Any, message: str, tmp_path: Path) -> None:
    family, codec = tiny.bert()
    saved("good", family, tmp_path / "good")
    saved_bad = tiny.bert()[0]
    saved("bad", saved_bad, tmp_path / "bad", 2)
    damage(tmp_path / "bad")
    serving, _ = tiny.bert()
    adapters = Adapters(serving)
    adapters.activate("good", tmp_path / "good")
    good = hidden(serving, codec)
    with pytest.raises(AdapterError, match=message):
        adapters.activate("bad", tmp_path / "bad")
    assert adapters.active == "good"
    assert torch.equal(hidden(serving, codec), good)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    saved("one", tiny.t5()[0], tmp_path)
    with pytest.raises(AdapterError, match="not made for this model"):
        Adapters(tiny.bert()[0]).activate("one", tmp_path)


def test_in_bfloat16_the_adapter_is_too(tmp_path: Path) -> None:
    saved("one", tiny.bert()[0], tmp_path)
    family, codec = tiny.bert()
    family.model.to(torch.bfloat16)
    adapters = Adapters(family)
    adapters.activate("one", tmp_path)
    assert hidden(family, codec).dtype == torch.bfloat16
    floats = {parameter.dtype for parameter in family.model.parameters()}
    assert floats == {torch.bfloat16}
