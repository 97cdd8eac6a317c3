"""A paced source gives every sample at its time, and says what a slow reader made it lose."""

from __future__ import annotations

import time

import numpy as np

from edge_asr.benchmark.paced_source import BLOCK_S, PacedSource

RATE = 16_000


def test_every_sample_comes_once_and_not_before_its_time() -> None:
    waveform = np.arange(4_900, dtype=np.float32)
    pieces, position = [], 0
    with PacedSource(waveform, delay_s=0.05) as source:
        while (block := source.read()) is not None:
            position += len(block.samples)
            assert time.monotonic() >= source.spoken_at(position)
            assert block.losses == ()
            pieces.append(block.samples)
        assert source.read() is None
    assert np.array_equal(np.concatenate(pieces), waveform)
    assert len(source.late_s) == len(pieces) == 16
    assert min(source.late_s) >= 0


def test_what_a_slow_reader_does_not_take_is_lost_and_told() -> None:
    waveform = np.zeros(RATE // 2, np.float32)
    with PacedSource(waveform, queue_s=0.1) as source:
        time.sleep(0.6)  # all of it was spoken meanwhile; a tenth fits
        heard, lost = 0, 0.0
        while (block := source.read()) is not None:
            heard += len(block.samples)
            lost += sum(loss.lost_s for loss in block.losses)
            assert all(loss.reason == "queue_overflow" for loss in block.losses)
    assert heard == round(0.1 * RATE)
    assert heard + round(lost * RATE) == len(waveform)


def test_stop_ends_it_early() -> None:
    with PacedSource(np.zeros(60 * RATE, np.float32)) as source:
        assert source.read() is not None
        source.stop()
        while source.read() is not None:
            pass
    assert len(source.late_s) * BLOCK_S < 30
