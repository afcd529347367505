"""Predictions in Redis: one round trip for many keys, bounded in number and age.

Predictions work without the cache: while Redis does not answer, everything is a miss and nothing is stored. This is
logged once, and once more when Redis answers again.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from backend.errors import StoreUnavailable
from backend.metrics import Metrics
from backend.ner.spans import Span

log = logging.getLogger(__name__)

_PREFIX = "gner:prediction:"
_INDEX = "gner:predictions"  # sorted set of the keys by the time they were put
_VERSIONS = "gner:versions"  # per project: sorted set of its versions by the time each became the one served
# How many versions are remembered per project.
_KEPT_VERSIONS = 10
# After a failure, Redis is not asked for this long, so that not every request waits for a time-out.
_RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class TextPrediction:
    """The model's answer for one text and one label set: the spans in text order, and its confidence (0..1).

    `num_words` is the number of words over which `score` is a mean.
    """

    spans: tuple[Span, ...]
    score: float
    num_words: int


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """The most entries, and the age at which they expire."""

    entries: int
    age_s: int


def cache_key(version: str, decoding: str, labels: Sequence[str], text: str, breaks: Sequence[int] = ()) -> str:
    """A key made of everything that a prediction depends on."""
    digest = hashlib.sha256(json.dumps([version, decoding, list(labels), list(breaks)]).encode())
    digest.update(text.encode("utf-8", "surrogatepass"))
    return _PREFIX + digest.hexdigest()


class PredictionCache:
    """Reads and writes many predictions at once. Thread-safe."""

    def __init__(self, client: redis.Redis | None, limits: CacheLimits, metrics: Metrics) -> None:
        """`client` None: the cache is switched off."""
        self._client = client
        self._limits = limits
        self._metrics = metrics
        self._lock = threading.Lock()
        self._away_until_s = 0.0
        self._away = False

    @property
    def state(self) -> str:
        """`off`, `up` or `down`, for /health."""
        if self._client is None:
            return "off"
        return "down" if self._away else "up"

    def get_many(self, keys: Sequence[str]) -> list[TextPrediction | None]:
        """Read predictions in one round trip; None for a miss."""
        found = self.peek_many(keys)
        hits = sum(prediction is not None for prediction in found)
        self._metrics.cache_hits.inc(hits)
        self._metrics.cache_misses.inc(len(keys) - hits)
        return found

    def peek_many(self, keys: Sequence[str]) -> list[TextPrediction | None]:
        """As get_many, but not counted as hits and misses: for predictions that are not sent to anyone."""
        values = self._ask(lambda client: client.mget(keys)) if keys else []
        return [None if value is None else _decode(value) for value in values or [None] * len(keys)]

    def earlier_version(self, project: str, version: str) -> str | None:
        """Record that a project is served `version` from now on. Returns the version that it was served before."""
        key = f"{_VERSIONS}:{project}"

        def note(client: redis.Redis) -> list[bytes]:
            with client.pipeline(transaction=False) as pipeline:
                pipeline.zadd(key, {version: time.time()})
                pipeline.zremrangebyrank(key, 0, -_KEPT_VERSIONS - 1)
                pipeline.expire(key, self._limits.age_s)  # older predictions have expired as well
                pipeline.zrevrange(key, 0, 1)
                served: list[bytes] = pipeline.execute()[-1]
            return served

        return next((v.decode() for v in self._ask(note) or () if v.decode() != version), None)

    def put_many(self, predictions: dict[str, TextPrediction]) -> None:
        """Write predictions in one round trip. If there are too many, the oldest are removed."""
        if predictions:
            self._ask(lambda client: self._put(client, predictions))

    def remove_many(self, keys: Sequence[str]) -> int:
        """Remove predictions; returns how many there were. Raises StoreUnavailable, so that none is left unnoticed."""
        if not keys or self._client is None:
            return 0
        removed = self._ask(lambda client: self._remove(client, keys))
        if removed is None:
            raise StoreUnavailable("the store does not answer: cached predictions cannot be removed; try again")
        return int(removed)

    def _remove(self, client: redis.Redis, keys: Sequence[str]) -> int:
        with client.pipeline(transaction=False) as pipeline:
            pipeline.unlink(*keys)
            pipeline.zrem(_INDEX, *keys)
            removed: int = pipeline.execute()[0]
        return removed

    def _put(self, client: redis.Redis, predictions: dict[str, TextPrediction]) -> None:
        now_s = time.time()
        with client.pipeline(transaction=False) as pipeline:
            for key, prediction in predictions.items():
                pipeline.set(key, _encode(prediction), ex=self._limits.age_s)
            pipeline.zadd(_INDEX, dict.fromkeys(predictions, now_s))
            pipeline.expire(_INDEX, self._limits.age_s)
            pipeline.zcard(_INDEX)
            num_entries = pipeline.execute()[-1]
        if num_entries > self._limits.entries:
            oldest: Any = client.zpopmin(_INDEX, num_entries - self._limits.entries)
            client.unlink(*[key for key, _ in oldest])

    def _ask(self, question: Any) -> Any:
        """Redis' answer; None while Redis does not answer."""
        if self._client is None or time.monotonic() < self._away_until_s:
            return None
        try:
            answer = question(self._client)
        except redis.RedisError as error:
            self._went_away(error)
            return None
        self._came_back()
        return answer

    def _went_away(self, error: redis.RedisError) -> None:
        with self._lock:
            self._away_until_s = time.monotonic() + _RETRY_AFTER_S
            if not self._away:
                self._away = True
                log.warning("Redis does not answer (%s): predictions go on without the cache", error)

    def _came_back(self) -> None:
        with self._lock:
            if self._away:
                self._away = False
                log.info("Redis answers again: predictions are cached")


def _encode(prediction: TextPrediction) -> bytes:
    spans = [[span.start, span.end, span.label, span.score] for span in prediction.spans]
    return json.dumps([prediction.score, prediction.num_words, spans], separators=(",", ":")).encode()


def _decode(value: bytes) -> TextPrediction | None:
    try:
        score, num_words, spans = json.loads(value)
        return TextPrediction(tuple(Span(*span) for span in spans), score, num_words)
    except (ValueError, TypeError) as error:  # not written by us: predict again and overwrite it
        log.warning("a cached prediction cannot be read (%s): %.40r", error, value)
        return None
