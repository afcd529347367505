"""The embedded store: a real Valkey whose files lie in a folder of ours."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from backend import store
from backend.errors import InvalidSettings, StoreUnavailable
from tests.support.processes import wait_until

START_S = 30.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: pytest's own may be too long for a socket, which has a test of its own."""
    with tempfile.TemporaryDirectory(prefix="gner-test-") as name:
        yield Path(name).resolve()


def pid_of(client: redis.Redis) -> int:
    info = client.info("server")
    assert isinstance(info, dict)
    return int(info["process_id"])


def test_what_was_written_is_there_after_a_restart(folder: Path) -> None:
    with store.embedded(folder) as url, store.connect(url) as client:
        client.set("a", "1")
    with store.embedded(folder) as url, store.connect(url) as client:
        assert client.get("a") == b"1"


def test_it_stops_with_its_user(folder: Path) -> None:
    with store.embedded(folder) as url, store.connect(url) as client:
        pid = pid_of(client)
        assert Path(f"/proc/{pid}").exists() or sys.platform != "linux"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with store.connect(url) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_a_write_survives_the_servers_sudden_death(folder: Path) -> None:
    with store.embedded(folder) as url, store.connect(url) as client:
        client.set("a", "1")
        os.kill(pid_of(client), signal.SIGKILL)
    with store.embedded(folder) as url, store.connect(url) as client:
        assert client.get("a") == b"1"


def test_what_is_deleted_vanishes_from_the_file(folder: Path) -> None:
    def found() -> bool:
        return any(b"a secret text" in path.read_bytes() for path in folder.rglob("*") if path.is_file())

    with store.embedded(folder) as url, store.connect(url) as client:
        client.set("a", "a secret text")
        client.delete("a")
        assert found()
        store.compact(client)
        wait_until("the file to be written anew", lambda: not found(), timeout_s=20)


@pytest.mark.slow  # waits until a dead store is noticed
def test_one_that_died_is_started_again_with_all_that_it_had(folder: Path) -> None:
    with store.embedded(folder) as url, store.connect(url) as client:
        client.set("a", "1")
        before = pid_of(client)
        os.kill(before, signal.SIGKILL)
        deadline_s = time.monotonic() + START_S
        while not store.answers(client):
            assert time.monotonic() < deadline_s, "nobody started it again"
            time.sleep(0.1)
        assert client.get("a") == b"1"
        again = pid_of(client)
        assert again != before
    with pytest.raises(ProcessLookupError):
        os.kill(again, 0)


def test_what_is_answered_is_on_the_disk(folder: Path) -> None:
    with store.embedded(folder) as url, store.connect(url) as client:
        told: Any = client.config_get("append*")
        assert (told["appendonly"], told["appendfsync"]) == ("yes", "always")


def test_a_store_that_is_away_or_refuses_is_told_in_a_sentence(folder: Path) -> None:
    with store.connect(store.embedded_url(folder)) as client:
        assert not store.answers(client)
        with pytest.raises(StoreUnavailable, match="does not answer"), store.answering():
            client.ping()
    with store.embedded(folder) as url, store.connect(url) as client:
        assert store.answers(client)
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="refuses"), store.answering():
            client.set("a", "1")


def test_two_folders_never_meet(folder: Path) -> None:
    with store.embedded(folder / "one") as one, store.embedded(folder / "two") as two:
        assert one != two
        with store.connect(one) as first, store.connect(two) as second:
            first.set("a", "1")
            assert second.get("a") is None


def test_a_path_longer_than_a_sockets_may_be(folder: Path) -> None:
    deep = folder / "/".join(["long-name-of-a-folder"] * 8)
    assert len(str(deep)) > 108
    twin = deep.with_name("another")
    with store.embedded(deep) as url, store.embedded(twin) as other:
        assert url != other
        with store.connect(url) as client:
            client.set("a", "1")
    assert any(deep.iterdir()), "the data lies in the folder all the same"
    with store.embedded(deep) as url, store.connect(url) as client:
        assert client.get("a") == b"1"


@pytest.mark.parametrize("name", ["käse-東京", "#hash", "100%25?"])
def test_a_folder_with_signs_that_mean_something_in_a_url(folder: Path, name: str) -> None:
    with store.embedded(folder / name) as url, store.connect(url) as client:
        client.set("a", "1")
    with store.embedded(folder / name) as url, store.connect(url) as client:
        assert client.get("a") == b"1"


@pytest.mark.parametrize("name", ["with a space", "quote's", 'double"quote'])
def test_a_folder_that_the_server_could_not_be_told_of_is_refused_in_a_sentence(folder: Path, name: str) -> None:
    with pytest.raises(InvalidSettings, match="MODEL_DIR") as caught, store.embedded(folder / name):
        pass
    assert name in str(caught.value).replace("\\", "")


def test_it_listens_on_no_port(folder: Path) -> None:
    with store.embedded(folder) as url, store.connect(url) as client:
        assert client.config_get("port") == {"port": "0"}


def test_one_that_a_killed_backend_left_is_taken_over_and_stopped(folder: Path) -> None:
    orphan_maker = (
        "import os, sys; from pathlib import Path; from backend import store\n"
        "with store.embedded(Path(sys.argv[1])) as url:\n"
        "    store.connect(url).set('a', '1')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", orphan_maker, str(folder)], check=False, timeout=60)
    with store.connect(store.embedded_url(folder)) as client:
        pid = pid_of(client)
    with store.embedded(folder) as url, store.connect(url) as client:
        assert pid_of(client) == pid
        assert client.get("a") == b"1"
    with store.connect(store.embedded_url(folder)) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_ctrl_c_in_a_terminal_does_not_reach_it(folder: Path) -> None:
    with store.embedded(folder) as url, store.connect(url) as client:
        os.kill(pid_of(client), signal.SIGINT)
        assert client.ping()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []), "it still reaches us"


def test_a_store_that_cannot_start_says_why(folder: Path) -> None:
    (folder / "appendonlydir").write_text("no folder", encoding="utf-8")
    with pytest.raises(StoreUnavailable, match=str(folder)), store.embedded(folder):
        pass


@pytest.mark.parametrize("url", ["redis://localhost:port", "redis://localhost:6379/0?socket_timeout=x"])
def test_a_url_that_cannot_be_read_is_named(url: str) -> None:
    with pytest.raises(InvalidSettings, match="REDIS_URL"):
        store.connect(url)
