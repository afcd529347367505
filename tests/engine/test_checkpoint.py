"""Checkpoint folders: what they contain, when their version changes, and the error for each defect."""

import json
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from backend.engine import checkpoint as checkpoints
from backend.engine.checkpoint import Checkpoint, LoadedModel
from backend.engine.codec import Limits
from backend.engine.decode import ExactDecoder
from backend.engine.draft_head import DraftHead
from backend.engine.family import BertToBertFamily, CausalFamily, T5Family
from backend.errors import CheckpointError, InvalidSettings
from backend.ner.prompt import CAUSAL_WRAPPER, PUBLISHED_TEMPLATE
from tests.support import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="session", params=["t5", "llama", "bert"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family and a folder of it, not to be written to."""
    return request.param, tiny.save(request.param, tmp_path_factory.mktemp("saved") / f"tiny-{request.param}")


@pytest.fixture(scope="session")
def saved_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("t5", tmp_path_factory.mktemp("saved") / "tiny-t5")


@pytest.fixture
def folder(saved_t5: Path, tmp_path: Path) -> Path:
    """A copy of a T5's folder, to be changed."""
    return Path(shutil.copytree(saved_t5, tmp_path / "tiny-t5"))


def load(checkpoint: Checkpoint) -> LoadedModel:
    return checkpoints.load(checkpoint, CPU, torch.float32)


def write_gner_json(folder: Path, **content: object) -> None:
    (folder / "gner.json").write_text(json.dumps(content), encoding="utf-8")


def error_of(function: Callable[[], object]) -> str:
    """The sentence that a user sees."""
    with pytest.raises(CheckpointError) as caught:
        function()
    return str(caught.value)


def test_a_folder_of_each_family_is_known_and_decodes(saved: tuple[str, Path]) -> None:
    family, path = saved
    checkpoint = checkpoints.resolve(str(path))
    assert checkpoint.kind == ("causal" if family == "llama" else "seq2seq")
    assert checkpoint.name == f"tiny-{family}"
    assert checkpoint.version == f"tiny-{family}-{checkpoint.digest[:10]}"
    assert checkpoint.prompt_format.template == PUBLISHED_TEMPLATE
    assert checkpoint.prompt_format.wrapper == (CAUSAL_WRAPPER if family == "llama" else "{instruction}")
    assert checkpoint.limits == Limits(640, 640)

    loaded = load(checkpoint)
    classes = {"t5": T5Family, "llama": CausalFamily, "bert": BertToBertFamily}
    assert isinstance(loaded.family, classes[family])
    assert loaded.device == CPU
    assert {parameter.dtype for parameter in loaded.family.model.parameters()} == {torch.float32}
    assert not loaded.family.model.training

    prompt = loaded.codec.encode(("person",), ["Marie", "Curie"])
    assert (prompt.source_ids[-1] == loaded.codec.tokenizer.eos_token_id) == (family == "t5")
    unsaved = {"t5": tiny.t5, "llama": tiny.llama, "bert": tiny.bert}[family]()[0]
    assert ExactDecoder(loaded.family, 48).decode([prompt]) == ExactDecoder(unsaved, 48).decode([prompt])


def test_the_dtype_is_the_one_asked_for(saved_t5: Path) -> None:
    loaded = checkpoints.load(checkpoints.resolve(str(saved_t5)), CPU, torch.bfloat16)
    assert loaded.family.model.shared.weight.dtype == torch.bfloat16


def test_a_trailing_slash_changes_nothing(saved_t5: Path) -> None:
    assert checkpoints.resolve(f"{saved_t5}/").version == checkpoints.resolve(str(saved_t5)).version


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_the_version_changes_with_any_byte_of_what_predictions_depend_on(folder: Path, file: str) -> None:
    write_gner_json(folder, template="{labels} : {sentence}")
    before = checkpoints.resolve(str(folder)).version
    assert checkpoints.resolve(str(folder)).version == before
    content = bytearray((folder / file).read_bytes())
    if file.endswith(".json"):
        content[-1:] = content[-1:] + b" "
    else:
        content[-1] ^= 1
    (folder / file).write_bytes(content)
    assert checkpoints.resolve(str(folder)).version != before


def test_the_version_changes_with_the_prompt_and_not_with_the_scores(folder: Path) -> None:
    write_gner_json(folder, template="{labels} : {sentence}")
    before = checkpoints.resolve(str(folder)).version
    write_gner_json(folder, template="{labels} : {sentence}", scores={"wikigold": 0.7})
    assert checkpoints.resolve(str(folder)).version == before
    write_gner_json(folder, template="{labels} > {sentence}")
    assert checkpoints.resolve(str(folder)).version != before


def test_the_version_does_not_change_with_the_readme_nor_with_the_place(folder: Path, tmp_path: Path) -> None:
    before = checkpoints.resolve(str(folder)).version
    (folder / "README.md").write_text("new", encoding="utf-8")
    assert checkpoints.resolve(str(folder)).version == before
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere" / "tiny-t5")
    assert checkpoints.resolve(str(elsewhere)).version == before


def test_gner_json_brings_name_template_limits_and_scores(folder: Path) -> None:
    write_gner_json(
        folder,
        name="mine",
        template="{labels} : {sentence}",
        wrapper="<{instruction}>",
        max_source_tokens=100,
        max_target_tokens=200,
        scores={"tweets": 0.61},
    )
    checkpoint = checkpoints.resolve(str(folder))
    assert checkpoint.version.startswith("mine-")
    assert checkpoint.limits == Limits(100, 200)
    assert checkpoint.scores == {"tweets": 0.61}
    assert checkpoint.prompt_format.render(["a", "b"], ["x", "y"]) == "<a, b : x y>"
    assert load(checkpoint).codec.budget(("person",)).source_tokens < 100


def test_positions_that_the_model_has_bound_the_limits(tmp_path: Path) -> None:
    path = tiny.save("bert", tmp_path / "tiny-bert")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["encoder"]["max_position_embeddings"] = 512
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert checkpoints.resolve(str(path)).limits == Limits(512, 640)


def test_a_draft_head_is_loaded_and_its_guesses_change_no_tag(tmp_path: Path) -> None:
    path = tiny.save("bert", tmp_path / "tiny-bert")
    write_gner_json(path, template="{labels} : {sentence}")
    plain = load(checkpoints.resolve(str(path)))
    torch.manual_seed(1)
    DraftHead(32, 8).save(path / "draft_head.safetensors", torch.float32)
    write_gner_json(path, template="{labels} : {sentence}", draft_head="draft_head.safetensors")
    drafting = load(checkpoints.resolve(str(path)))
    words = ["Marie", "Curie", "worked", "in", "Paris", ",", "x"]
    [expected] = ExactDecoder(plain.family, 48).decode([plain.codec.encode(("person", "location"), words)])
    prompt = drafting.codec.encode(("person", "location"), words)
    assert prompt.places is not None
    [found] = ExactDecoder(drafting.family, 48).decode([prompt])
    assert found.tags == expected.tags


# --- .bin weights


def as_bin(folder: Path) -> Path:
    """Replace safetensors by what torch.save wrote in older checkpoints."""
    (folder / "model.safetensors").unlink()
    torch.save(tiny.t5_model().state_dict(), folder / "pytorch_model.bin")
    return folder


def test_bin_weights_are_loaded(folder: Path, saved_t5: Path) -> None:
    loaded, safe = (load(checkpoints.resolve(str(path))) for path in (as_bin(folder), saved_t5))
    for (name, parameter), (_, other) in zip(
        loaded.family.model.named_parameters(), safe.family.model.named_parameters(), strict=True
    ):
        assert torch.equal(parameter, other), name


class _RunsCode:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("by_torch", [True, False], ids=["torch.save", "a bare pickle"])
def test_bin_weights_that_bring_code_are_refused_and_run_nothing(folder: Path, tmp_path: Path, by_torch: bool) -> None:
    proof = tmp_path / "executed"
    weights = as_bin(folder) / "pytorch_model.bin"
    content = {**tiny.t5_model().state_dict(), "extra": _RunsCode(proof)}
    if by_torch:
        torch.save(content, weights)
    else:
        weights.write_bytes(pickle.dumps(_RunsCode(proof), protocol=2))
    assert "tiny-t5" in error_of(lambda: load(checkpoints.resolve(str(folder))))
    assert not proof.exists()
    pickle.loads(pickle.dumps(_RunsCode(proof)))
    assert proof.exists(), "the pickle would have run its code, so that this test can fail"


# --- what is wrong


def test_a_value_that_is_nothing_is_named_with_what_would_do() -> None:
    said = error_of(lambda: checkpoints.resolve("no-such-model"))
    assert "'no-such-model'" in said
    assert "gner-mini" in said
    assert "folder" in said


@pytest.mark.parametrize("value", ["/no/such/folder", "./no/folder", "~/model", "a/b/c", "../x"])
def test_a_folder_that_is_missing_is_not_looked_for_at_the_hub(value: str) -> None:
    assert repr(value) in error_of(lambda: checkpoints.resolve(value))


def test_a_folder_without_config(tmp_path: Path) -> None:
    said = error_of(lambda: checkpoints.resolve(str(tmp_path)))
    assert str(tmp_path) in said
    assert "config.json" in said


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    said = error_of(lambda: checkpoints.resolve(str(folder)))
    assert str(folder) in said
    assert "no weights" in said


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"t5"'])
def test_a_config_that_is_no_object(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    assert str(folder / "config.json") in error_of(lambda: checkpoints.resolve(str(folder)))


@pytest.mark.parametrize("config", [{}, {"model_type": "no-such-type"}])
def test_a_config_of_an_unknown_type(folder: Path, config: object) -> None:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    said = error_of(lambda: checkpoints.resolve(str(folder)))
    assert str(folder) in said
    assert "config.json" in said


def test_a_model_of_a_type_that_is_not_ours(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    assert "tiny-t5" in error_of(lambda: load(checkpoints.resolve(str(folder))))


@pytest.mark.parametrize(
    "own",
    [
        {"template": "no fields"},
        {"template": "{labels} only"},
        {"template": "{sentence} only"},
        {"template": "{labels} {sentence} {sentence}"},
        {"wrapper": "no field"},
        {"template": 3},
        {"max_source_tokens": "many"},
        {"max_target_tokens": 0},
        {"draft_head": "missing.safetensors"},
    ],
    ids=json.dumps,
)
def test_a_gner_json_that_cannot_work_is_refused(folder: Path, own: dict[str, object]) -> None:
    write_gner_json(folder, **own)
    said = error_of(lambda: checkpoints.resolve(str(folder)))
    assert "gner.json" in said
    assert next(iter(own)) in said


@pytest.mark.parametrize("keep_bytes", [0, 5, 100, 20_000])
def test_truncated_weights(folder: Path, keep_bytes: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep_bytes])
    said = error_of(lambda: load(checkpoints.resolve(str(folder))))
    assert "'tiny-t5'" in said
    assert str(folder) in said


def test_weights_of_another_model_are_refused_and_not_filled_up_with_random_ones(folder: Path, tmp_path: Path) -> None:
    other = tiny.save("bert", tmp_path / "bert")
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    assert "'tiny-t5'" in error_of(lambda: load(checkpoints.resolve(str(folder))))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer(folder: Path, file: str) -> None:
    (folder / file).write_text("{", encoding="utf-8")
    assert "'tiny-t5'" in error_of(lambda: load(checkpoints.resolve(str(folder))))


def test_no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    said = error_of(lambda: checkpoints.resolve(str(folder)))
    assert str(folder) in said
    assert "no tokenizer" in said


# --- the hub


@pytest.fixture
def _empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("_empty_hub_cache")
def test_a_hub_id_in_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = error_of(lambda: checkpoints.resolve("owner/model"))
    assert "'owner/model'" in said
    assert "gner-mini" in said
    assert "offline" in said.lower()


@pytest.mark.usefixtures("_empty_hub_cache")
def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound and not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        said = error_of(lambda: checkpoints.resolve("owner/model"))
    assert "'owner/model'" in said
    assert "gner-mini" in said


@pytest.mark.usefixtures("_empty_hub_cache")
@pytest.mark.parametrize("value", ["owner/mod--el", "own er/model", "owner/", "/model"])
def test_an_id_that_no_hub_can_have(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert repr(value) in error_of(lambda: checkpoints.resolve(value))


# --- devices


def test_auto_takes_what_is_there() -> None:
    assert checkpoints.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert checkpoints.pick_device("cpu") == CPU


@pytest.mark.parametrize("value", ["gpu", "", "cuda:99", "cpu0", "meta", "mps", "xla"])
def test_a_device_that_is_not_there_is_named(value: str) -> None:
    with pytest.raises(InvalidSettings, match=f"GNER_DEVICE={value!r}"):
        checkpoints.pick_device(value)


def test_numbers_are_bfloat16_on_a_gpu_only_unless_asked_for() -> None:
    assert checkpoints.pick_dtype("auto", CPU) == torch.float32
    assert checkpoints.pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert checkpoints.pick_dtype("bfloat16", CPU) == torch.bfloat16
