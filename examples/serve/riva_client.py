#!/usr/bin/env python3
"""Sends a sound file to `edge-asr serve --riva 50051` as if it were spoken now, and prints what is heard.

pip install nvidia-riva-client soundfile
edge-asr serve --riva 50051 &
python examples/serve/riva_client.py speech.wav [localhost:50051] [pace] [word to favor ...]
"""

import os
import sys
import time
from collections.abc import Iterator

import riva.client
import soundfile

BLOCK_S = 0.1


def speak(samples, rate: int, pace: float) -> Iterator[bytes]:
    step = round(BLOCK_S * rate)
    for start in range(0, len(samples), step):
        yield samples[start : start + step].tobytes()
        time.sleep(BLOCK_S / pace)


def main(path: str, server: str = "localhost:50051", pace: str = "1", *words: str) -> None:
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    token = os.environ.get("EDGE_ASR_TOKEN")
    metadata = [["authorization", f"Bearer {token}"]] if token else []
    service = riva.client.ASRService(riva.client.Auth(uri=server, metadata_args=metadata))
    config = riva.client.RecognitionConfig(
        encoding=riva.client.AudioEncoding.LINEAR_PCM,
        sample_rate_hertz=rate,
        audio_channel_count=samples.shape[1],
        language_code="en-US",
        enable_word_time_offsets=True,
        verbatim_transcripts=True,  # numbers as words
    )
    riva.client.add_word_boosting_to_config(config, list(words), 50.0)
    streaming = riva.client.StreamingRecognitionConfig(config=config, interim_results=True)
    for response in service.streaming_response_generator(speak(samples, rate, float(pace)), streaming):
        for result in response.results:
            for alternative in result.alternatives:
                if result.is_final:
                    start_s = alternative.words[0].start_time / 1000
                    print(f"{start_s:7.2f} s  {alternative.transcript}({alternative.confidence:.2f})")
                else:
                    print(f"... {alternative.transcript}")


if __name__ == "__main__":
    main(*sys.argv[1:])
