"""The inputs of an engine's proof: those of an export, cut to what it accepts, and the edges of its profiles.

The first run of a shape, the run that records a CUDA graph and the run that replays it take different paths
(runtime/engine/runner.py). So each profile's best shape comes three times in a row, each time with other
speech.
What this file does not do: run anything (proof.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.manifest import BundleInfo
from edge_asr.feature_config import FeatureConfig
from edge_asr.proof.cases import CasePlan, ProofCase, build_cases
from edge_asr.runtime.engine.sidecar import EngineProfile
from edge_asr.runtime.features.extractor import FeatureExtractor

F32Array = npt.NDArray[np.float32]

_PROFILE = "profile"
_PADDED = "profile padded"
_GRAPH_RUNS = 3


def build_engine_cases(
    waveforms: Mapping[str, F32Array],
    info: BundleInfo,
    profiles: Sequence[EngineProfile],
    plan: CasePlan | None = None,
) -> list[ProofCase]:
    """Build everything to try on an engine: the cases of an export, cut to its profiles, and profile edges.

    Args:
        waveforms: real recordings by name, [S] float32 at the model's rate.
        info: that of the bundle.
        profiles: those of the engine.
        plan: how many cases of an export to try; by default up to the longest profile.

    Raises:
        AudioError: there is no clip, or one is shorter than a feature frame.
    """
    features, factor = info.features, info.output_frames
    longest = max(profile.max_frames for profile in profiles)
    plan = plan or CasePlan(max_random_s=longest * features.hop_length / features.sample_rate)
    cases = [
        *build_cases(waveforms, features, factor, plan),
        *_profile_cases(Speech(waveforms, features), profiles),
    ]
    return [_cut(case, longest) for case in cases]


class Speech:
    """Cuts pieces of exact length from the clips, laid end to end and repeated; every piece is different."""

    def __init__(self, waveforms: Mapping[str, F32Array], features: FeatureConfig) -> None:
        self._speech = np.concatenate(list(waveforms.values()))
        self._extractor = FeatureExtractor(features)
        self._generator = np.random.default_rng(2)

    def frames(self, n_frames: int) -> F32Array:
        """Return [n_frames, F] float32 from a random place."""
        config = self._extractor.config
        n_samples = (n_frames + 1) * config.hop_length + config.win_length
        start = int(self._generator.integers(len(self._speech)))
        repeats = -(-(start + n_samples) // len(self._speech))
        return self._extractor(np.tile(self._speech, repeats)[start : start + n_samples])[:n_frames]


def _profile_cases(speech: Speech, profiles: Sequence[EngineProfile]) -> list[ProofCase]:
    """Build cases of each profile at its smallest, best and largest length and batch, and padded."""
    cases = []
    for number, profile in enumerate(profiles):
        low, best, high = profile.min_frames, profile.opt_frames, profile.max_frames
        batches = sorted({profile.min_batch, profile.opt_batch, profile.max_batch})
        lengths = (low, low + 1, best - 1, best, high - 1, high)
        shapes = {(n, profile.opt_batch) for n in lengths if low <= n <= high}
        shapes |= {(n, rows) for n in (low, high) for rows in batches}
        for n_frames, n_rows in sorted(shapes):
            n_runs = _GRAPH_RUNS if (n_frames, n_rows) == (best, profile.opt_batch) else 1
            for run in range(1, n_runs + 1):
                rows = tuple(speech.frames(n_frames) for _ in range(n_rows))
                name = f"profile {number}, batch {n_rows}, {n_frames} frames, run {run}"
                cases.append(ProofCase(family=_PROFILE, name=name, features=rows))
        for n_rows in (n for n in batches if n > 1):
            padded = np.linspace(max(low // 2, 1), high, n_rows).astype(int)
            rows = tuple(speech.frames(int(n)) for n in padded)
            for padding in ("zeros", "noise"):
                name = f"profile {number}, batch {n_rows}, padding {padding}"
                cases.append(ProofCase(family=_PADDED, name=name, features=rows, padding=padding))
    return cases


def _cut(case: ProofCase, longest: int) -> ProofCase:
    """Return the case with its rows cut to the most frames that the engine accepts."""
    if max(case.lengths) <= longest:
        return case
    rows = tuple(row[:longest] for row in case.features)
    return ProofCase(family=case.family, name=case.name, features=rows, padding=case.padding)
