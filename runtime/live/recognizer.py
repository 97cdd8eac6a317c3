"""Live recognition: an audio source in, events out, in a thread of its own.

Three threads never wait for each other: that of the driver (copies and enqueues, in microphone.py), the
recognition thread (here: it reads the source, records, and feeds stream.py), and that of the caller, who
iterates over events or is called with them.
What this file does not do: open devices (microphone.py), find utterances (stream.py), print.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import SimpleQueue
from types import TracebackType
from typing import TypeVar

from edge_asr.audio import STREAM_SAMPLE_RATE, mono_from_waveform
from edge_asr.errors import ConfigError, DeviceError, EdgeAsrError
from edge_asr.runtime.live.events import Error, Event
from edge_asr.runtime.live.partials import PartialDecoder, Transcriber, WindowedDecoder
from edge_asr.runtime.live.sources import AudioBlock, AudioSource, Recorder
from edge_asr.runtime.live.stream import LiveConfig, LiveStats, LiveStream
from edge_asr.runtime.live.streaming_decoder import Partials, streaming_decoders
from edge_asr.runtime.recognizer import Recognizer

_Result = TypeVar("_Result")

_STOP_ANSWERS_S = 10.0
"""How long a stopped source may take in all to give what it has; after that it is abandoned."""
_STOP_AUDIO_S = 120.0
"""How much sound a stopped source may still give, more than any queue holds; after that it is abandoned."""


class LiveRecognizer:
    """Turns a source into events until it ends, `stop` is called or `max_audio_s` is reached.

        with LiveRecognizer(Recognizer.load(), MicrophoneSource()) as live:
            for event in live:
                ...

    Leaving the block stops listening, flushes the last words and waits. Without `on_event` the events wait in
    the iterator. With it, that function gets them in the recognition thread, and `join` waits for the end. An
    expected error (device gone, backend failed) is the last event, an `Error`, and is kept in `error`. Any
    other exception is a bug, which the iterator and `join` raise. A source that does not end after `stop` is
    abandoned after a while, with a `DeviceError`.

    Args:
        recognizer: a loaded `Recognizer`.
        source: where the audio comes from; it is opened and closed here.
        config: None for the defaults.
        partials: how the utterance in progress is followed. "auto" takes the bundle's streaming graph if that
            is cheaper, else "windowed", which encodes the last seconds again and again and works with every
            model. "streaming" requires the streaming graph. "off" gives finals only, like
            `LiveConfig(partials=False)`.
        recorder: keeps the stream; it is closed here.
        on_event: called with each event.
        partial_decoder: follows the utterance instead of what `partials` names.

    Raises:
        ConfigError: `partials` is unknown.
        BundleError: `partials` is "streaming" and the recognizer has no streaming graph.
        BackendError: the streaming graph cannot be loaded.
    """

    def __init__(
        self,
        recognizer: Transcriber,
        source: AudioSource,
        *,
        config: LiveConfig | None = None,
        partials: Partials = "auto",
        recorder: Recorder | None = None,
        on_event: Callable[[Event], None] | None = None,
        partial_decoder: PartialDecoder | None = None,
    ) -> None:
        config = config or LiveConfig()
        self.config = replace(config, partials=config.partials and partials != "off")
        self.error: EdgeAsrError | None = None
        self.hearing = threading.Event()
        """Set when the first audio has arrived, or listening has ended without any."""
        self._source = source
        self._recorder = recorder
        decoder = partial_decoder or _make_partial_decoder(
            recognizer, partials if self.config.partials else "off", self.config.partial_window_s
        )
        if isinstance(recognizer, Recognizer):
            recognizer.warm_up()
        self._on_event = on_event
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        # No method of this object: it would keep itself, and the stream's sound, until garbage is collected.
        self._emit: Callable[[Event], None] = on_event or self._events.put
        self._stream = LiveStream(recognizer, decoder, self.config, self._emit)
        self._bug: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="edge-asr-live", daemon=True)
        self._is_started = False
        self._ended = threading.Event()
        self._stopped_at: float | None = None
        # The holder decides whether the state still belongs to the recognition thread.
        self._handover = threading.Lock()
        self._waiting_since: float | None = None
        self._is_left_behind = False

    @property
    def stats(self) -> LiveStats:
        """Return what has happened so far."""
        return self._stream.stats

    def __enter__(self) -> LiveRecognizer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is None:
            self.join()
        else:
            self._ended.wait()

    def __iter__(self) -> Iterator[Event]:
        """Yield events as they happen, until listening has ended.

        Raises:
            ConfigError: listening has not begun, or the events go to `on_event`.
        """
        if self._on_event is not None:
            raise ConfigError("events go to on_event; leave it out to iterate over them")
        self._check_started()
        while (event := self._events.get()) is not None:
            yield event
        self._events.put(None)  # so that another iteration ends at once
        self.join()

    def start(self) -> None:
        """Begin to listen; return at once, without waiting for the device."""
        self._is_started = True
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, from any thread, without waiting; what was heard is still recognized."""
        is_first = self._stopped_at is None
        self._stopped_at = self._stopped_at or time.monotonic()
        self._source.stop()
        if is_first and self._is_started:
            threading.Thread(target=self._watch_source, name="edge-asr-live-stop", daemon=True).start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; return whether it has come.

        Raises:
            ConfigError: listening has not begun.
        """
        self._check_started()
        has_ended = self._ended.wait(timeout_s)
        if self._bug is not None:
            raise self._bug
        return has_ended

    def _check_started(self) -> None:
        if not self._is_started:
            raise ConfigError(
                "listening has not begun; write `with LiveRecognizer(...) as live:`, or call start() first"
            )

    def _run(self) -> None:
        failure: EdgeAsrError | None = None
        try:
            self._ask_source(self._source.__enter__)
            try:
                self._listen()
            finally:
                exception = sys.exc_info()
                self._ask_source(lambda: self._source.__exit__(*exception))
        except _LeftBehindError:
            return  # the thread that abandoned the source has ended listening
        except EdgeAsrError as error:
            failure = error
        except BaseException as bug:  # noqa: BLE001 - raised again in the caller's thread by join
            self._bug = bug
        self._conclude(failure)

    def _conclude(self, failure: EdgeAsrError | None) -> None:
        """Emit the last words, the error if there was one, and the end."""
        self.error = failure
        try:
            try:
                self._stream.end()
            except EdgeAsrError as error:
                self.error = self.error or error
            if self.error is not None:
                at_s = self._stream.n_heard / STREAM_SAMPLE_RATE
                self._emit(Error(message=str(self.error), kind=type(self.error).__name__, at_s=at_s))
            if self._recorder is not None:
                self._recorder.close()
        except BaseException as bug:  # noqa: BLE001 - see _run
            self._bug = self._bug or bug
        finally:
            self.hearing.set()
            self._events.put(None)
            self._ended.set()

    def _ask_source(self, call: Callable[[], _Result]) -> _Result:
        """Call a method of the source, which may block.

        Raises:
            DeviceError: the source raised an OSError.
            _LeftBehindError: the source took too long after `stop`, so the state is no longer ours.
        """
        with self._handover:
            self._waiting_since = time.monotonic()
        try:
            return call()
        except EdgeAsrError:
            raise
        except OSError as error:
            raise DeviceError(f"the source failed with {type(error).__name__}: {error}") from error
        finally:
            with self._handover:
                self._waiting_since = None
                if self._is_left_behind:
                    raise _LeftBehindError

    def _watch_source(self) -> None:
        """End listening from this thread if the stopped source keeps the recognition thread waiting."""
        while not self._ended.wait(0.05):
            with self._handover:
                assert self._stopped_at is not None
                since = max(self._waiting_since or time.monotonic(), self._stopped_at)
                if time.monotonic() - since < _STOP_ANSWERS_S:
                    continue
                self._is_left_behind = True
            self._conclude(DeviceError(_does_not_end("still keeps its reader waiting")))

    def _read(self) -> AudioBlock | None:
        try:
            return self._ask_source(self._source.read)
        except (EdgeAsrError, _LeftBehindError):
            raise
        except Exception as bug:  # noqa: BLE001 - raised again in the caller's thread, behind the last words
            self._bug = bug
            return None

    def _listen(self) -> None:
        limit_s = self.config.max_audio_s
        limit = None if limit_s is None else round(limit_s * STREAM_SAMPLE_RATE)
        waited_s, heard_s = 0.0, 0.0  # counted since stop was called
        began = time.monotonic()
        while (block := self._read()) is not None:
            for loss in block.losses:
                self._stream.lose(loss)
            for change in block.changes:
                self._stream.change(change)
            samples = mono_from_waveform(block.samples)
            if self._stopped_at is not None:
                waited_s += time.monotonic() - max(began, self._stopped_at)
                heard_s += len(samples) / STREAM_SAMPLE_RATE
                if waited_s > _STOP_ANSWERS_S or heard_s > _STOP_AUDIO_S:
                    raise DeviceError(_does_not_end("still gives sound"))
            if limit is not None:
                samples = samples[: limit - self._stream.n_heard]
            if self._recorder is not None:
                self._recorder.write(samples)
            self._stream.hear(samples)
            if len(samples):
                self.hearing.set()
            if limit is not None and self._stream.n_heard >= limit:
                break
            began = time.monotonic()


class _LeftBehindError(Exception):
    """The source answered after listening had been ended without it."""


def _does_not_end(how: str) -> str:
    return (
        f"the source {how} {_STOP_ANSWERS_S:g} s after stop(), when its read() has to return None; listening "
        "ended without it"
    )


def _make_partial_decoder(recognizer: Transcriber, partials: Partials, window_s: float) -> PartialDecoder:
    """Make the decoder of `partials`; with "off", endpointing still asks it for words before a pause."""
    if partials not in ("auto", "streaming", "windowed", "off"):
        raise ConfigError(f"partials is {partials!r}; it must be auto, streaming, windowed or off")
    if partials == "auto" or partials == "streaming":
        if isinstance(recognizer, Recognizer):
            make_decoder = streaming_decoders(recognizer, partials)
            if make_decoder is not None:
                return make_decoder()
        elif partials == "streaming":
            raise ConfigError(
                f"partials is 'streaming', which needs a Recognizer with its bundle, not a "
                f"{type(recognizer).__name__}; use 'auto'"
            )
    if isinstance(recognizer, Recognizer):
        recognizer = recognizer.for_partials()
    return WindowedDecoder(recognizer, window_s)
