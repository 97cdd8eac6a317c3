"""Reads what a client of Riva asks for: encoding, boosted words, end-pointing, numbers, language.

Without effect are `max_alternatives` (there is one), `profanity_filter`, `enable_automatic_punctuation`,
`start_history`, thresholds and two-pass end-pointing. Speakers and channels apart from one another are
refused, because a client could not tell that they are missing.
What this file does not do: receive messages (riva_face.py).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from edge_asr.errors import AudioError, ConfigError
from edge_asr.serving.options import SessionOptions, json_from_text, session_options_from_json
from edge_asr.serving.riva_messages import ENCODINGS
from edge_asr.serving.sound_pieces import RawSound
from edge_asr.serving.uploads import MAX_CHANNELS

_SUBTYPES = {"LINEAR_PCM": "PCM_16", "MULAW": "ULAW", "ALAW": "ALAW"}
_CUSTOM = ("endpoint", "grammar", "grammar_mode", "language_model")
_ANY_LANGUAGE = ("", "multi")
_LOW_BOOST, _HIGH_BOOST = 20.0, 100.0
_PAUSE_MS = (100, 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a client asks for.

    Attributes:
        options: of the session; the rate of a file is that of its header.
        raw: what samples without a header are; None: a file has to come.
        with_words: whether words with times are wanted.
        language: its code, as asked for.
    """

    options: SessionOptions
    raw: RawSound | None
    with_words: bool
    language: str

    def recording(self, audio: bytes) -> io.BytesIO:
        """Return a whole recording as a file.

        Raises:
            AudioError: there is none.
        """
        if not audio:
            raise AudioError("the request has no audio; send a WAV, FLAC or Ogg file, or raw samples")
        is_file = audio[:4] in (b"RIFF", b"fLaC", b"OggS")
        return io.BytesIO(audio) if is_file or self.raw is None else self.raw.wav(audio)


def read_request(config: Any, language: str) -> Asked:
    """Read a RecognitionConfig.

    Args:
        config: the message.
        language: what the model speaks.

    Raises:
        ConfigError, AudioError: it asks for what is not here.
    """
    asked_language = config.language_code
    if asked_language not in _ANY_LANGUAGE and _family(asked_language) != _family(language):
        raise ConfigError(
            f"language_code is {asked_language[:40]!r}; this model hears {language!r} "
            "(the server's --language says so)"
        )
    if config.diarization_config.enable_speaker_diarization:
        raise ConfigError("enable_speaker_diarization is on; speakers are not told apart here, leave it out")
    channels = config.audio_channel_count or 1
    if config.enable_separate_recognition_per_channel and channels > 1:
        raise ConfigError(
            "enable_separate_recognition_per_channel is on; send each channel in a call of its own"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise ConfigError(f"audio_channel_count is {channels}; give 1 to {MAX_CHANNELS}")
    options: dict[str, Any] = {
        **_custom_options(config),
        "sample_rate": config.sample_rate_hertz or 16_000,
        "channels": channels,
        "digits": not config.verbatim_transcripts,
        "hotwords": _hotwords(config),
    }
    if stop_ms := config.endpointing_config.stop_history:
        if not _PAUSE_MS[0] <= stop_ms <= _PAUSE_MS[1]:
            raise ConfigError(f"stop_history is {stop_ms} ms; give {_PAUSE_MS[0]} to {_PAUSE_MS[1]}")
        options["pause_s"] = stop_ms / 1000
    read = session_options_from_json(options)
    subtype = _subtype(config.encoding)
    return Asked(
        options=read,
        raw=RawSound(subtype=subtype, sample_rate=read.sample_rate, channels=channels) if subtype else None,
        with_words=config.enable_word_time_offsets,
        language=language if asked_language in _ANY_LANGUAGE else asked_language,
    )


def _family(code: str) -> str:
    return code.replace("_", "-").partition("-")[0].lower()


def _subtype(encoding: int) -> str | None:
    """Return what raw samples are; unsaid, they are 16-bit PCM. None for FLAC and Ogg."""
    if encoding == 0:
        return _SUBTYPES["LINEAR_PCM"]
    name = next((name for name, number in ENCODINGS.items() if number == encoding), None)
    if name is None:
        raise ConfigError(f"encoding is {encoding}; give {', '.join(ENCODINGS)}")
    return _SUBTYPES.get(name)


def _custom_options(config: Any) -> dict[str, Any]:
    custom = {entry.key: entry.value for entry in config.custom_configuration}
    for key in custom:
        if key not in _CUSTOM:
            raise ConfigError(f"custom_configuration has {key[:40]!r}; known here are {', '.join(_CUSTOM)}")
    return json_from_text(custom)


def _hotwords(config: Any) -> list[str]:
    return [
        f"{phrase}:{_boost(context.boost):g}"
        for context in config.speech_contexts
        for phrase in context.phrases
    ]


def _boost(boost: float) -> float:
    """Convert a boost: Riva's advice is 20 to 100, ours 1 to at most 2 for each letter; unsaid, it is 1."""
    if not 0 <= boost < float("inf"):
        raise ConfigError(f"boost is {boost:g}; give a number above 0, or leave the words out")
    if boost == 0:
        return 1.0
    if boost <= _LOW_BOOST:
        return boost / _LOW_BOOST
    return 1.0 + min(1.0, (boost - _LOW_BOOST) / (_HIGH_BOOST - _LOW_BOOST))
