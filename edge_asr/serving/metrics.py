"""Counts what the server does, for Prometheus.

Every name is `edge_asr_...`; beside them stand `process_*` (memory, processor time, open files) of the client
library. No label holds anything that a client chose, so the number of series is bounded.
What this file does not do: serve them (http_face.py).
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from edge_asr.runtime import Final, Gap
from edge_asr.runtime.live.events import Event
from edge_asr.serving.observer import Observer, Watched
from edge_asr.serving.sessions import Sessions
from edge_asr.serving.turns import Purpose

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class Metrics(Observer):
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"edge_asr_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"edge_asr_{name}", text, labels, registry=registry, buckets=buckets)

        self._sessions = counter("sessions", "Sessions that have begun.")
        self._ended = counter("sessions_ended", "Sessions that have ended, and why.", "reason")
        self._audio = counter("audio_seconds", "Seconds of sound recognized.", "kind")
        self._events = counter("events", "Events given: partial, final, unmatched, gap, error.", "type")
        self._lost = counter("lost_audio_seconds", "Seconds of sound lost in gaps.")
        self._refused = counter("refused", "Clients refused or cut off, and why.", "reason")
        self._recordings = counter("recordings", "Recordings transcribed.")
        self._runs = histogram(
            "model_run_seconds", "A run of the model, waiting for its turn included.", "purpose"
        )
        self._steps = histogram("stream_step_seconds", "A step of a stream, waiting for its turn included.")
        self._step_rows = histogram(
            "stream_step_rows", "Streams that were computed together, seen by each step.", buckets=_ROWS
        )
        self._finals = histogram("final_seconds", "From the decision that an utterance ended to its final.")
        self._waits = histogram("endpoint_wait_seconds", "From the end of speech to that decision.")
        self._transcriptions = histogram("recording_seconds", "The transcription of a recording.")

    def watch(self, core: Sessions) -> None:
        """Also show how many places of a core are taken."""
        places = Gauge(
            "edge_asr_places_taken", "Places of sessions or recordings that are taken.", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        places.labels("session").set_function(lambda: core.n_sessions)
        places.labels("recording").set_function(lambda: core.n_requests)

    def page(self) -> bytes:
        """Return all figures in the text format of Prometheus."""
        return generate_latest(self.registry)

    def session_opened(self, session: Watched) -> None:
        """See `Observer`."""
        self._sessions.inc()

    def session_closed(self, session: Watched, audio_s: float) -> None:
        """See `Observer`."""
        self._ended.labels(session.reason).inc()
        self._audio.labels("live").inc(audio_s)

    def event(self, session: Watched, event: Event) -> None:
        """See `Observer`."""
        self._events.labels(event.to_dict()["type"]).inc()
        if isinstance(event, Final):
            self._finals.observe(event.compute_s)
            self._waits.observe(event.endpoint_wait_s)
        elif isinstance(event, Gap):
            self._lost.inc(event.lost_s)

    def model_ran(self, purpose: Purpose, seconds: float) -> None:
        """See `Observer`."""
        self._runs.labels(purpose).observe(seconds)

    def stepped(self, seconds: float, rows: int) -> None:
        """See `Observer`."""
        self._steps.observe(seconds)
        self._step_rows.observe(rows)

    def transcribed(self, audio_s: float, seconds: float) -> None:
        """See `Observer`."""
        self._recordings.inc()
        self._audio.labels("recording").inc(audio_s)
        self._transcriptions.observe(seconds)

    def refused(self, reason: str) -> None:
        """See `Observer`."""
        self._refused.labels(reason).inc()
