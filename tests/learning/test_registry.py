"""The registry on disk: all of a version or nothing of it, and a pointer that never lies."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from backend.errors import CorruptVersion, NothingToRollBack, UnknownVersion, VersionInUse
from backend.learning import registry as registry_module
from backend.learning.registry import PUBLISHED, REJECTED, Registry, VersionInfo, sha256_of, version_name

BASE = "tiny-0123456789"
PROJECT = "2.1795333437"
OTHER = "3.1795333999"


def info(version: str, project: str = PROJECT, **changes: object) -> VersionInfo:
    plain = VersionInfo(
        version=version,
        project=project,
        base=BASE,
        parent=BASE,
        created_at="2026-11-22T10:00:00+00:00",
        status=PUBLISHED,
        reason="held-out F1 rose from 0.50 to 0.70",
        examples=((1, 11), (2, 12)),
        held_out=((3, 13),),
        scores={"held_out_f1": 0.7, "held_out_f1_before": 0.5},
        settings={"rank": 16, "rate": 1e-4},
        seconds=12.5,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path, BASE)


@pytest.fixture
def publish(registry: Registry) -> Callable[..., VersionInfo]:
    def publish(
        version: str, project: str = PROJECT, *, promote: bool = True, weights: bytes | None = None, **changes: object
    ) -> VersionInfo:
        described = info(version, project, **changes)
        with registry.new_folder(project) as folder:
            fill(folder, version.encode() if weights is None else weights)
            registry.publish(folder, described, promote=promote)
        return registry.info(project, version)

    return publish


def fill(folder: Path, weights: bytes) -> None:
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")


def files(tmp_path: Path) -> list[str]:
    return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())


def test_where_nothing_was_trained_the_base_is_in_use(registry: Registry, tmp_path: Path) -> None:
    assert registry.projects() == ()
    assert registry.versions(PROJECT) == ()
    assert registry.current(PROJECT) is None
    assert registry.project_of("v1") is None
    assert files(tmp_path) == [], "to look changes nothing"


def test_a_published_version_is_described_found_and_in_use(
    registry: Registry, publish: Callable[..., VersionInfo], tmp_path: Path
) -> None:
    described = publish("v1")
    assert described == info("v1", adapter_sha256=described.adapter_sha256)
    folder = registry.folder(PROJECT, "v1")
    assert folder == tmp_path / "versions" / BASE / PROJECT / "v1"
    assert described.adapter_sha256 == sha256_of(folder / "adapter_model.safetensors")
    assert registry.current(PROJECT) == "v1"
    assert registry.projects() == (PROJECT,)
    assert registry.versions(PROJECT) == (described,)
    assert registry.project_of("v1") == PROJECT
    assert list(folder.parent.glob(".incoming*")) == []


def test_another_process_sees_the_same(publish: Callable[..., VersionInfo], tmp_path: Path) -> None:
    publish("v1")
    described = publish("v2", parent="v1")
    elsewhere = Registry(tmp_path, BASE)
    assert elsewhere.current(PROJECT) == "v2"
    assert elsewhere.info(PROJECT, "v2") == described
    assert elsewhere.project_of("v2") == PROJECT


def test_a_rejected_version_is_kept_with_its_figures_and_not_used(
    registry: Registry, publish: Callable[..., VersionInfo]
) -> None:
    publish("v1")
    publish("v2", promote=False, status=REJECTED, reason="held-out F1 fell", created_at="2026-11-22T11:00:00+00:00")
    assert registry.current(PROJECT) == "v1"
    assert [(one.version, one.status) for one in registry.versions(PROJECT)] == [("v1", PUBLISHED), ("v2", REJECTED)]
    registry.promote(PROJECT, "v2")
    assert registry.current(PROJECT) == "v2", "by hand it may be"


def test_projects_and_bases_have_versions_of_their_own(
    registry: Registry, publish: Callable[..., VersionInfo], tmp_path: Path
) -> None:
    publish("v1")
    publish("w1", OTHER)
    assert registry.projects() == (PROJECT, OTHER)
    assert (registry.current(PROJECT), registry.current(OTHER)) == ("v1", "w1")
    assert registry.project_of("w1") == OTHER
    with pytest.raises(UnknownVersion, match=r"'w1'.*\['v1'\]"):
        registry.folder(PROJECT, "w1")
    with pytest.raises(UnknownVersion):
        registry.promote(PROJECT, "w1")
    assert Registry(tmp_path, "larger-9876543210").current(PROJECT) is None


def test_versions_come_oldest_first(registry: Registry, publish: Callable[..., VersionInfo]) -> None:
    for version, hour in (("c", 10), ("a", 11), ("b", 9)):
        publish(version, created_at=f"2026-11-22T{hour:02}:00:00+00:00")
    assert [one.version for one in registry.versions(PROJECT)] == ["b", "c", "a"]


# --- the pointer


def test_rollback_goes_back_step_by_step(registry: Registry, publish: Callable[..., VersionInfo]) -> None:
    for version in ("v1", "v2", "v3"):
        publish(version)
    assert [registry.rollback(PROJECT) for _ in range(3)] == ["v2", "v1", BASE]
    assert registry.current(PROJECT) is None
    with pytest.raises(NothingToRollBack, match=f"{PROJECT}.*{BASE}"):
        registry.rollback(PROJECT)


def test_what_was_promoted_can_be_rolled_back_whatever_it_was(
    registry: Registry, publish: Callable[..., VersionInfo]
) -> None:
    publish("v1")
    publish("v2")
    registry.promote(PROJECT, BASE)
    assert registry.current(PROJECT) is None
    registry.promote(PROJECT, BASE)  # nothing new
    assert registry.rollback(PROJECT) == "v2"
    registry.promote(PROJECT, "v1")
    assert registry.rollback(PROJECT) == "v2"
    assert registry.rollback(PROJECT) == "v1"


def test_rollback_passes_over_what_is_damaged(
    registry: Registry, publish: Callable[..., VersionInfo], caplog: pytest.LogCaptureFixture
) -> None:
    for version in ("v1", "v2", "v3"):
        publish(version)
    (registry.folder(PROJECT, "v2") / "adapter_model.safetensors").write_bytes(b"x")
    assert registry.rollback(PROJECT) == "v1"
    assert "v2" in caplog.text


def test_a_project_that_was_never_trained_stays_with_the_base(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NothingToRollBack):
        registry.rollback(PROJECT)
    registry.promote(PROJECT, BASE)
    assert registry.projects() == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"current": 3, "history": []}', '{"current": "v1"}', "\x00" * 40])
def test_a_pointer_that_cannot_be_read_is_an_error_and_can_be_set_anew(
    registry: Registry, publish: Callable[..., VersionInfo], content: str
) -> None:
    publish("v1")
    pointer = registry.folder(PROJECT, "v1").parent / "current.json"
    pointer.write_text(content, encoding="utf-8")
    with pytest.raises(CorruptVersion, match=r"current\.json"):
        registry.current(PROJECT)
    with pytest.raises(CorruptVersion):
        registry.rollback(PROJECT)
    registry.promote(PROJECT, "v1")
    assert registry.current(PROJECT) == "v1"


# --- damage


def _truncate(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"")


def _flip_a_byte(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def _lose_the_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _lose_the_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _lose_the_description(folder: Path) -> None:
    (folder / "version.json").unlink()


def _garble_the_description(folder: Path) -> None:
    (folder / "version.json").write_text('{"version": "v1"}', encoding="utf-8")


@pytest.mark.parametrize("looked_at_before", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip_a_byte,
        _lose_the_weights,
        _lose_the_config,
        _lose_the_description,
        _garble_the_description,
    ],
)
def test_a_damaged_version_is_refused_by_its_name(
    registry: Registry,
    publish: Callable[..., VersionInfo],
    damage: Callable[[Path], None],
    looked_at_before: bool,
) -> None:
    publish("v0")
    publish("v1", promote=False)
    folder = registry.folder(PROJECT, "v0").with_name("v1")
    if looked_at_before:
        registry.folder(PROJECT, "v1")
    damage(folder)
    with pytest.raises(CorruptVersion, match="v1"):
        registry.folder(PROJECT, "v1")
    with pytest.raises(CorruptVersion):
        registry.promote(PROJECT, "v1")
    assert registry.current(PROJECT) == "v0"


def test_an_adapter_is_read_again_only_once_it_has_changed(
    registry: Registry, publish: Callable[..., VersionInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("v1")
    adapter = registry.folder(PROJECT, "v1") / "adapter_model.safetensors"
    an_hour_ago_s = time.time() - 3600
    os.utime(adapter, (an_hour_ago_s, an_hour_ago_s))
    read: list[Path] = []

    def noting_sha256_of(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(registry_module, "sha256_of", noting_sha256_of)
    for _ in range(3):
        registry.folder(PROJECT, "v1")
    assert read == [adapter]
    adapter.write_bytes(b"v2")
    with pytest.raises(CorruptVersion):
        registry.folder(PROJECT, "v1")


def test_a_folder_that_cannot_be_read_is_skipped_and_said(
    registry: Registry, publish: Callable[..., VersionInfo], caplog: pytest.LogCaptureFixture
) -> None:
    publish("v1")
    publish("v2")
    _garble_the_description(registry.folder(PROJECT, "v1"))
    assert [one.version for one in registry.versions(PROJECT)] == ["v2"]
    assert "v1" in caplog.text


# --- publication


def test_a_folder_that_was_not_published_is_gone(registry: Registry, tmp_path: Path) -> None:
    def train() -> None:
        with registry.new_folder(PROJECT) as folder:
            fill(folder, b"half")
            raise RuntimeError("training broke")

    with pytest.raises(RuntimeError, match="training broke"):
        train()
    assert files(tmp_path) == []
    assert registry.versions(PROJECT) == ()


def test_what_is_incomplete_is_not_published(registry: Registry) -> None:
    with registry.new_folder(PROJECT) as folder:
        (folder / "adapter_model.safetensors").write_bytes(b"x")
        with pytest.raises(CorruptVersion, match=r"adapter_config\.json"):
            registry.publish(folder, info("v1"), promote=True)
    assert registry.versions(PROJECT) == ()
    assert registry.current(PROJECT) is None


def test_unfinished_folders_are_never_versions(registry: Registry, publish: Callable[..., VersionInfo]) -> None:
    publish("v1")
    with registry.new_folder(PROJECT) as folder:
        fill(folder, b"v2")
        (folder / "version.json").write_bytes((registry.folder(PROJECT, "v1") / "version.json").read_bytes())
        assert [one.version for one in registry.versions(PROJECT)] == ["v1"]
        for name in (folder.name, "..", ".", "", "../" + OTHER, "a/b", "v" * 500, "v\x00"):
            with pytest.raises(UnknownVersion):
                registry.folder(PROJECT, name)
            assert registry.project_of(name) is None


def test_what_a_killed_training_left_behind_is_removed_in_the_end(registry: Registry) -> None:
    with registry.new_folder(PROJECT) as folder:
        recent, old = folder.with_name(".incoming-recent"), folder.with_name(".incoming-old")
    for left in (recent, old):
        left.mkdir(parents=True)
        fill(left, b"half")
    long_ago_s = time.time() - 30 * 86_400
    os.utime(old, (long_ago_s, long_ago_s))
    with registry.new_folder(PROJECT):
        assert recent.is_dir()
        assert not old.exists()


def test_the_same_weights_again_change_the_description_only(
    registry: Registry, publish: Callable[..., VersionInfo]
) -> None:
    publish("v1", promote=False, status=REJECTED)
    publish("v1", status=PUBLISHED)
    assert [one.status for one in registry.versions(PROJECT)] == [PUBLISHED]
    assert registry.current(PROJECT) == "v1"
    registry.folder(PROJECT, "v1")


def test_a_name_never_comes_to_stand_for_other_weights(registry: Registry, publish: Callable[..., VersionInfo]) -> None:
    publish("v1", weights=b"one")
    with pytest.raises(CorruptVersion, match="other weights"):
        publish("v1", weights=b"two")
    assert (registry.folder(PROJECT, "v1") / "adapter_model.safetensors").read_bytes() == b"one"


def test_a_damaged_version_is_repaired_by_publishing_it_again(
    registry: Registry, publish: Callable[..., VersionInfo], tmp_path: Path
) -> None:
    publish("v1", weights=b"one")
    _truncate(registry.folder(PROJECT, "v1"))
    publish("v1", weights=b"one")
    assert (registry.folder(PROJECT, "v1") / "adapter_model.safetensors").read_bytes() == b"one"
    assert not any(".incoming" in name for name in files(tmp_path))


_PUBLISH_FOR_EVER = """
import sys
from pathlib import Path
from tests.learning.test_registry import BASE, PROJECT, Registry, fill, info
registry = Registry(Path(sys.argv[1]), BASE)
for number in range(1_000_000):
    with registry.new_folder(PROJECT) as folder:
        fill(folder, str(number).encode() * 20_000)
        registry.publish(folder, info(f"v{number}"), promote=True)
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", range(4))
def test_whenever_the_trainer_is_killed_there_is_no_half_a_version(
    registry: Registry, tmp_path: Path, after: int
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _PUBLISH_FOR_EVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with child:
        assert child.stdout is not None
        for _ in range(1 + 7 * after):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    seen = registry.versions(PROJECT)
    assert seen
    for one in seen:
        registry.folder(PROJECT, one.version)
    current = registry.current(PROJECT)
    assert current is not None
    registry.folder(PROJECT, current)


def test_many_who_publish_at_once_do_not_lose_each_others_history(
    registry: Registry, publish: Callable[..., VersionInfo], tmp_path: Path
) -> None:
    versions = [f"v{number}" for number in range(12)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(publish, versions))
    current = registry.current(PROJECT)
    back = [current] + [Registry(tmp_path, BASE).rollback(PROJECT) for _ in versions]
    assert sorted(back[:-1]) == sorted(versions)  # type: ignore[type-var]
    assert back[-1] == BASE


@pytest.mark.parametrize("project", ["7", "..", ".hidden", "a/b", "проект", "%2E", "x y"])
def test_any_project_key_keeps_to_its_own_folder(
    registry: Registry, publish: Callable[..., VersionInfo], tmp_path: Path, project: str
) -> None:
    publish("v1", project)
    assert registry.projects() == (project,)
    assert registry.current(project) == "v1"
    assert registry.folder(project, "v1").parent.parent == tmp_path / "versions" / BASE


def test_publication_is_logged(publish: Callable[..., VersionInfo], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="backend.learning.registry")
    publish("v1")
    assert "v1" in caplog.text
    assert "held-out F1 rose" in caplog.text


def test_what_a_later_release_wrote_beside_is_let_be(registry: Registry, publish: Callable[..., VersionInfo]) -> None:
    described = publish("v1")
    path = registry.folder(PROJECT, "v1") / "version.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "colour": "red"}), encoding="utf-8")
    assert registry.info(PROJECT, "v1") == described


def test_what_an_earlier_release_did_not_write_has_its_default(
    registry: Registry, publish: Callable[..., VersionInfo]
) -> None:
    described = publish("v1")
    path = registry.folder(PROJECT, "v1") / "version.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    del written["settings"], written["held_out"]
    path.write_text(json.dumps(written), encoding="utf-8")
    assert registry.info(PROJECT, "v1") == replace(described, settings={}, held_out=())


def test_versions_of_other_bases_are_counted(
    registry: Registry, publish: Callable[..., VersionInfo], tmp_path: Path
) -> None:
    publish("v1")
    publish("v2", OTHER)
    assert registry.of_other_bases() == {}
    assert Registry(tmp_path, "tiny-9999999999").of_other_bases() == {BASE: 2}
    assert Registry(tmp_path / "new", BASE).of_other_bases() == {}


# --- removing


def test_a_version_is_deleted_unless_it_is_in_use(registry: Registry, publish: Callable[..., VersionInfo]) -> None:
    for version in ("v1", "v2", "v3"):
        publish(version)
    with pytest.raises(VersionInUse, match="'v3'"):
        registry.remove_version(PROJECT, "v3")
    registry.remove_version(PROJECT, "v2")
    assert [each.version for each in registry.versions(PROJECT)] == ["v1", "v3"]
    assert registry.rollback(PROJECT) == "v1", "the deleted one is no step back"
    with pytest.raises(UnknownVersion, match="'v2'"):
        registry.remove_version(PROJECT, "v2")


def test_a_project_is_deleted_with_all_its_versions(
    registry: Registry, publish: Callable[..., VersionInfo], tmp_path: Path
) -> None:
    publish("v1")
    publish("other", OTHER)
    Registry(tmp_path, "tiny-9999999999").remove_project("9.9")
    assert registry.remove_project(PROJECT) == ("v1",)
    assert registry.remove_project(PROJECT) == ()
    assert registry.projects() == (OTHER,)
    assert registry.current(PROJECT) is None
    assert not [path for path in files(tmp_path) if PROJECT in path or "incoming" in path]


# --- names


def test_a_name_tells_base_and_project_and_depends_on_the_content() -> None:
    assert version_name("gner-mini", PROJECT, "ab" * 32).startswith("gner-mini-p2-")
    variants = {
        version_name("gner-mini", PROJECT, "ab"),
        version_name("gner-mini", PROJECT, "ac"),
        version_name("gner-mini", "2.1795333438", "ab"),  # another Label Studio's project 2
        version_name("gner-base", PROJECT, "ab"),
    }
    assert len(variants) == 4
    assert version_name("gner-mini", PROJECT, "ab") == version_name("gner-mini", PROJECT, "ab")
    assert "/" not in version_name("some/where", "a/b.c", "ab")
