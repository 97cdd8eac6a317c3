"""Handles long recordings in bounded memory: overlapping windows, stitched where both are silent.

A window begins every `step_frames` of features and reaches `overlap_frames` into the next one.
Inside an overlap both windows have log-probs on the same grid of output frames. Near its own edge each window
lacks context, so `margin` frames there are not trusted. In the rest, the cut goes into the middle of a
stretch where the best token of both windows is blank: the longest of those around which both have read the
same tokens. Then no token is cut apart, doubled or lost. If no frame is blank in both, the cut is the frame
that comes closest to it.

A recording of at most one window takes one pass. The positions of windows depend only on the number of
frames, never on how they arrived. The last window is always longer than the overlap.
What this file does not do: run models, decode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.decoder import Emissions

F32Array = npt.NDArray[np.float32]

WINDOW_S = 24.0
OVERLAP_S = 4.0
MARGIN_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WindowGeometry:
    """The positions of windows.

    Attributes:
        window_frames, overlap_frames: feature frames, multiples of `subsampling_factor`.
        margin_frames: output frames at each edge of an overlap where no cut may be.
        subsampling_factor: feature frames per output frame.

    Raises:
        ConfigError: the numbers leave no room for a cut, or no step.
    """

    window_frames: int
    overlap_frames: int
    margin_frames: int
    subsampling_factor: int

    def __post_init__(self) -> None:
        factor = self.subsampling_factor
        if factor < 1 or self.window_frames % factor or self.overlap_frames % factor:
            raise ConfigError(
                f"window of {self.window_frames} and overlap of {self.overlap_frames} frames must be "
                f"multiples of the subsampling factor {factor}"
            )
        if not 0 < 2 * self.overlap_frames <= self.window_frames:
            raise ConfigError(
                f"the overlap of {self.overlap_frames} frames must be positive and at most half the "
                f"window of {self.window_frames}"
            )
        if not 0 <= 2 * self.margin_frames < self.overlap_frames // factor:
            raise ConfigError(
                f"two margins of {self.margin_frames} output frames fill the overlap of "
                f"{self.overlap_frames // factor}; leave at least one frame for the cut"
            )

    @property
    def step_frames(self) -> int:
        """Count the feature frames from the beginning of one window to that of the next."""
        return self.window_frames - self.overlap_frames

    @classmethod
    def from_seconds(
        cls,
        *,
        feature_frame_s: float,
        subsampling_factor: int,
        window_s: float = WINDOW_S,
        overlap_s: float = OVERLAP_S,
        margin_s: float = MARGIN_S,
    ) -> WindowGeometry:
        """Return the geometry nearest to the given seconds on the grid of output frames."""
        frame_s = feature_frame_s * subsampling_factor
        return cls(
            window_frames=round(window_s / frame_s) * subsampling_factor,
            overlap_frames=round(overlap_s / frame_s) * subsampling_factor,
            margin_frames=round(margin_s / frame_s),
            subsampling_factor=subsampling_factor,
        )


def stitch_windows(
    features: Iterable[F32Array],
    encode: Callable[[F32Array], Emissions],
    geometry: WindowGeometry,
    blank_id: int,
) -> Iterator[Emissions]:
    """Compute what the model gives for a recording whose features arrive in pieces.

    Args:
        features: pieces [t, n_mels], any lengths.
        encode: runs the model on one window, [T, n_mels] -> ceil(T / factor) frames.
        geometry: where windows lie.
        blank_id: index of blank.

    Yields:
        Pieces; together ceil(T / factor) frames for T feature frames.
    """
    waiting: list[F32Array] = []
    n_waiting = 0
    stitcher = _Stitcher(geometry, blank_id)
    for piece in features:
        if len(piece) == 0:
            continue
        waiting.append(piece)
        n_waiting += len(piece)
        # Strictly more than a window must wait, so that it is known before a run whether the window is the
        # last.
        while n_waiting > geometry.window_frames:
            frames = np.concatenate(waiting)
            yield from stitcher.add(encode(frames[: geometry.window_frames]), is_last=False)
            waiting = [frames[geometry.step_frames :].copy()]
            n_waiting = len(waiting[0])
    if n_waiting:
        yield from stitcher.add(encode(np.concatenate(waiting)), is_last=True)


class _Stitcher:
    """Holds the overlap of the last window until the next one settles where to cut."""

    def __init__(self, geometry: WindowGeometry, blank_id: int) -> None:
        self._geometry = geometry
        self._blank_id = blank_id
        self._left: Emissions | None = None

    def add(self, window: Emissions, *, is_last: bool) -> Iterator[Emissions]:
        factor = self._geometry.subsampling_factor
        begin = 0
        if self._left is not None:
            begin = choose_cut(
                self._left.log_probs,
                window.log_probs[: len(self._left)],
                blank_id=self._blank_id,
                margin=self._geometry.margin_frames,
            )
            yield self._left[:begin]
            self._left = None
        end = len(window) if is_last else self._geometry.step_frames // factor
        yield window[begin:end]
        if not is_last:
            self._left = window[end:].copy()


def choose_cut(left: F32Array, right: F32Array, *, blank_id: int, margin: int) -> int:
    """Choose where to switch from one window to the next inside their overlap.

    Args:
        left, right: log-probs [n, V] of the same n frames by the earlier and the later window.
        blank_id: index of blank.
        margin: frames at both ends where no cut may be; 2 * margin < n.

    Returns:
        c in [margin, n - margin]: frames before c come from `left`, c and later ones from `right`.
    """
    inner = slice(margin, len(left) - margin)
    left_best, right_best = np.argmax(left[inner], axis=1), np.argmax(right[inner], axis=1)
    blank = np.minimum(left[inner, blank_id], right[inner, blank_id])
    is_blank = (left_best == blank_id) & (right_best == blank_id)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_blank, [False]]).astype(np.int8)))
    if len(edges) == 0:
        return margin + int(np.argmax(blank))

    def rate(silence: tuple[int, int]) -> tuple[int, int, float]:
        begin, end = silence
        # Windows sometimes place a token a frame apart. Between its two places both are blank, and a cut
        # there would lose it. The tokens before and after the cut reveal such gaps.
        agreement = _agreement(
            _collapse(left_best[:begin], blank_id)[::-1], _collapse(right_best[:begin], blank_id)[::-1]
        ) + _agreement(_collapse(left_best[end:], blank_id), _collapse(right_best[end:], blank_id))
        # Among equally long ones, the most certain blank is where the speaker is most likely silent.
        return agreement, end - begin, float(blank[begin:end].mean())

    begin, end = max(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True), key=rate)
    return margin + int(begin + end) // 2


def _collapse(best: npt.NDArray[np.int64], blank_id: int) -> list[int]:
    """Merge the repeats of a best path and drop its blanks."""
    is_first = np.concatenate([[True], best[1:] != best[:-1]])[: len(best)]
    tokens: list[int] = best[is_first & (best != blank_id)].tolist()
    return tokens


def _agreement(left: list[int], right: list[int]) -> int:
    """Return 2 if both have the same tokens, 1 if one has one more at the far end, else 0."""
    n_common = min(len(left), len(right))
    if abs(len(left) - len(right)) > 1 or left[:n_common] != right[:n_common]:
        return 0
    return 2 if len(left) == len(right) else 1
