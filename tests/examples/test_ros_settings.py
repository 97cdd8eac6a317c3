"""The parameters of the ROS 2 example: each bad value is refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from edge_asr_ros.settings import ABOUT, Settings, constraint, defaults, settings_from_values

from edge_asr.errors import EdgeAsrError
from edge_asr.runtime.backends import BACKENDS


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"model": ""}, "model is empty; give the folder of a bundle or the name of an embedded model"),
        ({"precision": "fp64"}, "precision is 'fp64'; it must be one of auto, fp32, fp16, int8"),
        ({"provider": "npu"}, "provider is 'npu'; it must be one of auto, tensorrt, tensorrt-rtx, cuda, cpu"),
        ({"threads": -1}, "threads is -1; give 1 to 256, or 0 for a choice"),
        ({"source": "file"}, "source is 'file'; it must be one of microphone, topic"),
        ({"device": 3}, "device is 3; it must be text"),
        ({"wait": "yes"}, "wait is 'yes'; it must be true or false"),
        (
            {"audio_type": "Sound"},
            "audio_type is 'Sound'; it must be one of AudioStamped, Audio, AudioData, AudioDataStamped",
        ),
        ({"sample_rate": 0}, "the sample rate is 0; give whole Hz from 1000 to 768000"),
        ({"channels": 65}, "channels is 65; give 1 to 64"),
        ({"sample_format": "mp3"}, "sample_format is 'mp3'; it must be one of s16le, s32le, f32le"),
        ({"endpoint": "slow"}, "endpoint is 'slow'; it must be one of default, command, dictation, agent"),
        ({"partials": "some"}, "partials is 'some'; it must be one of auto, streaming, windowed, off"),
        ({"grammar_mode": "any"}, "grammar_mode is 'any'; it must be one of whole, spot"),
        ({"hotwords": ["go:up"]}, "the boost of the hotword 'go:up' is no number; write phrase:1.5"),
        ({"locale": "en-US"}, "locale is 'en-US'; write a language and a region, such as en_US"),
        (
            {"grammar": "robot.txt", "hotwords": ["stop"]},
            "grammar is 'robot.txt' and hotwords are ['stop']; a grammar takes no hotwords, so leave one "
            "of them out",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_parameter_is_refused_in_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EdgeAsrError) as refusal:
        settings_from_values(values)
    assert str(refusal.value) == sentence


def test_parameters_are_described_and_their_defaults_taken() -> None:
    assert list(ABOUT) == list(defaults())
    assert settings_from_values(defaults()) == Settings()
    assert constraint("precision") == "one of auto, fp32, fp16, int8"
    assert constraint("provider") == f"one of {', '.join(BACKENDS)}"
    assert constraint("threads") == "0 to 256"
    assert constraint("model") == ""
    assert settings_from_values({"hotwords": ["", "stop", " "]}).hotwords == ("stop",)
