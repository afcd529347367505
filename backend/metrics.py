"""Counters and timings, for /metrics and the dashboard."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """One per process, made by app.build and passed to every object that counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gner_requests", "HTTP requests answered", ["endpoint", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "gner_request_seconds",
            "Time to answer an HTTP request",
            ["endpoint"],
            buckets=(0.005, 0.02, 0.1, 0.3, 1, 3, 10, 30, 90),
            registry=self.registry,
        )
        self.cache_hits = Counter("gner_cache_hits", "Texts answered from the cache", registry=self.registry)
        self.cache_misses = Counter("gner_cache_misses", "Texts not in the cache", registry=self.registry)
        self.deadline_misses = Counter(
            "gner_deadline_misses", "Texts answered later than their request's deadline", registry=self.registry
        )
        self.refused_tasks = Counter(
            "gner_refused_tasks", "Tasks that are not predicted, by reason", ["reason"], registry=self.registry
        )
        self.ignored_annotations = Counter(
            "gner_ignored_annotations",
            "Annotations of webhooks that changed nothing: they came twice, late, or after their deletion",
            registry=self.registry,
        )
        self.windows_decoded = Counter("gner_windows_decoded", "Windows the model tagged", registry=self.registry)
        self.batches = Counter("gner_batches", "Batches the model tagged", registry=self.registry)
        self.decoder_passes = Counter(
            "gner_decoder_passes", "Forward passes through the decoder", registry=self.registry
        )
        self.decoder_tokens = Counter(
            "gner_decoder_tokens", "Tokens run through the decoder, padding included", registry=self.registry
        )
        self.output_tokens = Counter("gner_output_tokens", "Tokens of the answers", registry=self.registry)
        self.decode_seconds = Counter("gner_decode_seconds", "Time the model was busy", registry=self.registry)
        self.queued_windows = Gauge("gner_queued_windows", "Windows waiting for the model", registry=self.registry)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
