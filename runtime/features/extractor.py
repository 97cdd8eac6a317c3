"""Log-mel features in numpy and scipy.fft: whole clips, and streams that give the same bits.

Frames are always computed in blocks of `BLOCK_FRAMES`: frame k is in row k % BLOCK_FRAMES, and what other
rows hold does not matter. The rounding of matrix products depends on shape and row. With both fixed, a frame
has the same bits however its samples arrived. A block also stays in the L2 cache. What works row by row runs
only on the rows that are used, and those beside them that fill the lanes of a processor, as in a whole block.

The mel product works on squared real and imaginary parts side by side, with each filter weight twice, which
saves adding them. It works band by band, because a group of neighboring filters touches few bins. The small
products also stay below the size at which OpenBLAS wakes its threads.

What this file does not do: resampling (`edge_asr.audio`), dither (always 0), global CMVN (inside the
model graph).
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.errors import AudioError, ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.fft import load_rfft
from edge_asr.runtime.features.float32_tables import build_float32_mel_filters, build_float32_window
from edge_asr.runtime.features.mel import build_mel_filters
from edge_asr.runtime.features.normalization import normalize_features

__all__ = ["FeatureConfig", "FeatureExtractor", "FeatureStream"]

F32Array = npt.NDArray[np.float32]

BLOCK_FRAMES = 128
"""Frames computed at once: the fastest of 16 to 1008 on x86 (2 MB L2), flat above 96."""

_MAX_PRODUCT = 1 << 18
"""Largest rows * columns * depth of one banded product; OpenBLAS wakes its threads above (interface/gemm.c,
SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD), which costs more than such a product takes."""

_LANES = 16
"""Rows or numbers that vectorized loops take at once at most (AVX-512, float32)."""

_rfft = load_rfft()


def build_window(name: str, length: int) -> npt.NDArray[np.float64]:
    """Build the analysis window `name` of FeatureConfig, [length] float64."""
    n = np.arange(length, dtype=np.float64)
    shape, _, periodic = name.partition("_")
    period = length if periodic else max(length - 1, 1)
    angle = 2.0 * np.pi * n / period
    hann = 0.5 - 0.5 * np.cos(angle)
    if shape == "rectangular":
        return np.ones(length)
    if shape == "hamming":
        return np.asarray(0.54 - 0.46 * np.cos(angle))
    if shape == "blackman":
        return np.asarray(0.42 - 0.5 * np.cos(angle) + 0.08 * np.cos(2.0 * angle))
    if shape == "bartlett":
        return np.asarray(1.0 - np.abs(2.0 * n / period - 1.0))
    # Povey's window: kaldi/src/feat/feature-window.cc.
    return np.asarray(hann**0.85 if shape == "povey" else hann)


class _Scratch(threading.local):
    """Buffers of one extractor in one thread; never shared, so extractors are thread-safe."""

    def __init__(self, config: FeatureConfig) -> None:
        dtype = _frame_dtype(config)
        self.frames = np.zeros((BLOCK_FRAMES, config.n_fft), dtype)
        self.spare = np.zeros((BLOCK_FRAMES, config.n_fft), dtype)
        self.wide = np.empty((BLOCK_FRAMES if _is_widened(config) else 0, config.n_fft), np.float64)
        self.power = np.zeros((BLOCK_FRAMES, 2 * (config.n_fft // 2 + 1)), np.float32)
        self.log_mel = np.empty((BLOCK_FRAMES, config.n_mels), np.float32)


class FeatureExtractor:
    """Waveform to log-mel. Immutable after creation, thread-safe, picklable.

    Args:
        config: the front end.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        # One row per frame, with zeros up to n_fft, makes the product one contiguous run.
        self._window = np.zeros((BLOCK_FRAMES, config.n_fft), _frame_dtype(config))
        build = build_float32_window if config.float32_tables else build_window
        self._window[:, : config.win_length] = build(config.window, config.win_length)
        self._bands = _build_bands(config) if config.kind == "log_mel" else []
        self._scratch = _Scratch(config)

    def __reduce__(self) -> tuple[Any, ...]:
        return (FeatureExtractor, (self.config,))

    def n_frames(self, n_samples: int) -> int:
        """Count the frames that `n_samples` samples give."""
        config = self.config
        if config.framing == "center_zero":
            return max(n_samples, 0) // config.hop_length
        if config.framing == "center_zero_end":
            return n_samples // config.hop_length + 1 if n_samples > 0 else 0
        if config.framing == "center_reflect":
            return n_samples // config.hop_length + 1 if n_samples > _half_window(config) else 0
        return max((n_samples - config.win_length) // config.hop_length + 1, 0)

    def n_samples(self, n_frames: int) -> int:
        """Count the samples after which a stream has given `n_frames` frames, at least one."""
        config = self.config
        half = 0 if config.framing == "snip_edges" else _half_window(config)
        least = half + 1 if config.framing == "center_reflect" else 0
        return max((n_frames - 1) * config.hop_length + config.win_length - half, least)

    def __call__(self, waveform: npt.ArrayLike) -> F32Array:
        """Compute the features of a whole clip.

        Args:
            waveform: [S] float32 at `config.sample_rate`, full scale 1.0.

        Returns:
            [n_frames(S), n_mels] float32: natural-log mel power, normalized when the config says so.

        Raises:
            AudioError: the waveform is not one-dimensional.
        """
        samples = _check_waveform(waveform)
        framer = _Framer(self.config)
        framer.push(samples)
        framer.finish()
        features = self._compute(framer, self.n_frames(len(samples)))
        normalize_features(features, self.config.normalize)
        return features

    def stream(self) -> FeatureStream:
        """Return a stream whose pieces, put together, equal `self(whole waveform)` bit for bit.

        Raises:
            ConfigError: the config normalizes over the clip, which cannot stream.
        """
        if self.config.normalize != "none":
            raise ConfigError(
                f"features.normalize is {self.config.normalize!r}, which needs the whole clip; "
                "a stream needs a model trained with normalize 'none'"
            )
        return FeatureStream(self)

    def _compute(self, framer: _Framer, end: int) -> F32Array:
        """Compute frames framer.next_frame ... end - 1, [t, n_mels], and move the framer to `end`."""
        first = framer.next_frame
        if self.config.kind == "waveform":
            samples: F32Array = framer.take(max(end - first, 0)).copy()
            return samples
        output = np.empty((max(end - first, 0), self.config.n_mels), np.float32)
        while framer.next_frame < end:
            frame = framer.next_frame
            row = frame % BLOCK_FRAMES
            n_rows = min(BLOCK_FRAMES - row, end - frame)
            block = self._compute_block(framer.take(n_rows), row)
            output[frame - first : frame - first + n_rows] = block[row : row + n_rows]
        return output

    def _compute_block(self, frames: F32Array, row: int) -> F32Array:
        """Compute log-mel of frames [n, win] put at `row` of a block; return the scratch [B, n_mels]."""
        config, scratch = self.config, self._scratch
        first, last = row // _LANES * _LANES, -(-(row + len(frames)) // _LANES) * _LANES
        if config.remove_dc:  # a matrix product too
            first, last = 0, BLOCK_FRAMES
        used = slice(first, last)
        block = scratch.frames[used]
        if len(frames) < len(block):
            block[:] = 0.0
        block[row - first : row - first + len(frames), : config.win_length] = frames
        if config.remove_dc or config.preemphasis_scope == "frame":
            block = _condition_frames(block, config, scratch.spare[used])
        # Copying and then multiplying the whole block takes half the time of a product with a strided
        # operand. The position of the window in the FFT only changes phases, so it starts at column 0.
        np.multiply(block, self._window[used], out=block)
        if _is_widened(config):
            np.copyto(scratch.wide[used], block)
            block = scratch.wide[used]
        power = _rfft(block).view(block.dtype)  # (used rows, 2 * bins)
        if config.double_precision or len(power) < BLOCK_FRAMES:
            # float32 is enough after the transform, and the products need all rows.
            np.copyto(scratch.power[used], power, casting="same_kind")
            power = scratch.power
        np.multiply(power[used], power[used], out=power[used])
        if config.power == 1.0:
            # Both columns have the weight of the filter, so the column of the real part takes the magnitude.
            power[used, 0::2] = np.sqrt(power[used, 0::2] + power[used, 1::2])
            power[used, 1::2] = 0.0
        log_mel = scratch.log_mel
        for mels, bins, weights in self._bands:
            np.matmul(power[:, bins], weights, out=log_mel[:, mels])
        guard = np.float32(config.log_guard_value)
        if config.log_guard == "add":
            np.add(log_mel[used], guard, out=log_mel[used])
        else:
            np.maximum(log_mel[used], guard, out=log_mel[used])
        np.log(log_mel[used], out=log_mel[used])
        return log_mel


class FeatureStream:
    """Features of a waveform that arrives in pieces. One thread at a time; made by `stream()`."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self._extractor = extractor
        self._framer = _Framer(extractor.config)
        self._finished = False

    def push(self, waveform: npt.ArrayLike) -> F32Array:
        """Take [s] more samples; return the frames they complete, [t, n_mels], t >= 0.

        Raises:
            AudioError: the waveform is not one-dimensional.
            ConfigError: the stream was flushed before.
        """
        self._check_open()
        self._framer.push(_check_waveform(waveform))
        return self._extractor._compute(self._framer, self._framer.n_ready())

    def flush(self) -> F32Array:
        """End the waveform; return its last frames, [t, n_mels]. The stream is closed then."""
        self._check_open()
        self._finished = True
        self._framer.finish()
        return self._extractor._compute(self._framer, self._extractor.n_frames(self._framer.n_samples))

    def _check_open(self) -> None:
        if self._finished:
            raise ConfigError("this feature stream was flushed; make a new one with stream()")


class _Framer:
    """Samples in, overlapping frames out: scaling, signal pre-emphasis, padding at both ends."""

    def __init__(self, config: FeatureConfig) -> None:
        self._config = config
        self._half = 0 if config.framing == "snip_edges" else _half_window(config)
        self._reflect = config.framing == "center_reflect"
        self._head_pending = self._reflect
        # Samples _start ... _end of the storage are still needed; the first of them is sample
        # next_frame * hop - half of the clip. `_half` zeros follow _end.
        n_left = 0 if self._reflect else self._half
        self._storage: F32Array = np.zeros(n_left + self._half, np.float32)
        self._start, self._end = 0, n_left
        self._previous = np.float32(0.0)
        self.next_frame = 0
        self.n_samples = 0

    def push(self, samples: F32Array) -> None:
        if len(samples) == 0:
            return
        config = self._config
        if config.input_scale != 1.0:
            samples = samples * np.float32(config.input_scale)
        body = self._grow(len(samples))
        if config.preemphasis and config.preemphasis_scope == "signal":
            factor = np.float32(config.preemphasis)
            np.multiply(samples[:-1], -factor, out=body[1:])
            body[0] = -factor * self._previous
            np.add(body, samples, out=body)
            self._previous = samples[-1]
        else:
            body[:] = samples
        self.n_samples += len(samples)
        if self._head_pending and self.n_samples > self._half:
            self._head_pending = False
            clip = self._storage[: self._end]
            head = clip[self._half : 0 : -1]
            self._storage = np.concatenate([head, clip, np.zeros(self._half, np.float32)])
            self._end += self._half

    def finish(self) -> None:
        """Add what follows the last sample: zeros, or the clip mirrored."""
        if self._reflect and not self._head_pending:
            mirrored = self._storage[self._end - 1 - self._half : self._end - 1][::-1]
            self._storage[self._end : self._end + self._half] = mirrored
        self._end += self._half

    def n_ready(self) -> int:
        """Count the frames, from frame 0 on, that have all their samples."""
        if self._head_pending:
            return 0
        config = self._config
        n_more = (self._end - self._start - config.win_length) // config.hop_length + 1
        return self.next_frame + max(n_more, 0)

    def take(self, n_rows: int) -> F32Array:
        """Return the next `n_rows` frames as a view [n_rows, win_length], and move on."""
        config = self._config
        size = self._storage.itemsize
        frames: F32Array = np.ndarray(
            (n_rows, config.win_length),
            np.float32,
            buffer=self._storage.data,
            offset=self._start * size,
            strides=(config.hop_length * size, size),
        )
        self._start += n_rows * config.hop_length
        self.next_frame += n_rows
        return frames

    def _grow(self, n_new: int) -> F32Array:
        """Make room for `n_new` samples after what is left, and return that room."""
        left = self._storage[self._start : self._end]
        storage = np.empty(len(left) + n_new + self._half, np.float32)
        storage[: len(left)] = left
        storage[len(left) + n_new :] = 0.0
        self._storage, self._start, self._end = storage, 0, len(left) + n_new
        return storage[len(left) : len(left) + n_new]


def _build_bands(config: FeatureConfig) -> list[tuple[slice, slice, F32Array]]:
    """Group the filters: (mel columns, columns of the squared spectrum, weights)."""
    build = build_float32_mel_filters if config.float32_tables else build_mel_filters
    filters = build(
        sample_rate=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.n_mels,
        f_min=config.f_min,
        f_max=config.f_max,
        scale=config.mel_scale,
        norm=config.mel_norm,
    )
    bins = [np.flatnonzero(row) if row.any() else np.zeros(1, np.int64) for row in filters]
    bands = []
    first = 0
    while first < config.n_mels:
        last = first + 1
        while last < config.n_mels and _product_size(bins[first : last + 1]) <= _MAX_PRODUCT:
            last += 1
        used = np.concatenate(bins[first:last])
        low, high = int(used.min()), int(used.max()) + 1
        weights = np.repeat(filters[first:last, low:high].T, 2, axis=0).astype(np.float32)
        bands.append((slice(first, last), slice(2 * low, 2 * high), np.ascontiguousarray(weights)))
        first = last
    return bands


def _product_size(bins: list[npt.NDArray[np.int64]]) -> int:
    """Compute rows * columns * depth of the product for filters that use these bins."""
    used = np.concatenate(bins)
    return BLOCK_FRAMES * len(bins) * 2 * int(used.max() - used.min() + 1)


def _half_window(config: FeatureConfig) -> int:
    """Count the samples before the center of a frame; its window is centered in the FFT, as in torch.stft."""
    return config.n_fft // 2 - (config.n_fft - config.win_length) // 2


def _frame_dtype(config: FeatureConfig) -> type[np.floating[Any]]:
    """Return the dtype of frames before the FFT; with `double_precision` the FFT itself runs in float64."""
    return np.float64 if config.double_precision and not config.float32_tables else np.float32


def _is_widened(config: FeatureConfig) -> bool:
    """Tell whether float32 frames go through an FFT in float64."""
    return config.double_precision and config.float32_tables


def _condition_frames(
    block: npt.NDArray[Any], config: FeatureConfig, spare: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Remove DC and pre-emphasize each frame of a block [B, n_fft], as Kaldi's ProcessWindow does.

    Columns past win_length hold anything, because the window is zero there. `spare` is a block of
    the same shape; the result is one of the two.
    """
    if config.remove_dc:
        # A product with a constant vector is twice as fast as mean(). Zero columns do not contribute.
        weights = np.full(config.win_length, 1.0 / config.win_length, block.dtype)
        mean = block[:, : config.win_length] @ weights
        np.subtract(block, mean[:, None], out=block)
    if config.preemphasis and config.preemphasis_scope == "frame":
        # One contiguous run over the flat block is wrong only in column 0, which is then set.
        flat, shifted = block.reshape(-1), spare.reshape(-1)
        np.multiply(flat[:-1], -config.preemphasis, out=shifted[1:])
        shifted[:: config.n_fft] = -config.preemphasis * block[:, 0]
        np.add(spare, block, out=block)
    return block


def _check_waveform(waveform: npt.ArrayLike) -> F32Array:
    samples = np.asarray(waveform, dtype=np.float32)
    if samples.ndim != 1:
        raise AudioError(f"features take a waveform of shape [samples], got shape {list(samples.shape)}")
    return samples
