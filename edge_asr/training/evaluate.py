"""Greedy WER and CER of a model in training on dev clips, in padded batches, in float32.

This is the quick measure between steps.
What this file does not do: windows, token times, files (edge_asr.runtime).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edge_asr.feature_config import FeatureConfig
from edge_asr.metrics import ErrorRates, compute_error_rates
from edge_asr.model import ConformerCTC
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.training.corpus import Clip
from edge_asr.vocabulary import Vocabulary


@dataclass(slots=True)
class DevSet:
    """Features of one dev source, computed once: f32 [T, n_mels] per clip."""

    name: str
    features: list[npt.NDArray[np.float32]]
    references: list[str]


def build_dev_sets(clips: Sequence[Clip], features: FeatureConfig) -> list[DevSet]:
    """Build one `DevSet` per source name, in the order of the clips."""
    extractor = FeatureExtractor(features)
    sets: dict[str, DevSet] = {}
    for clip in clips:
        dev = sets.setdefault(clip.source, DevSet(clip.source, [], []))
        dev.features.append(extractor(clip.load(features.sample_rate)))
        dev.references.append(clip.text)
    return list(sets.values())


@torch.no_grad()
def decode_greedy(
    model: ConformerCTC,
    features: Sequence[npt.NDArray[np.float32]],
    vocabulary: Vocabulary,
    *,
    max_batch_frames: int,
    chunk_frames: int | None = None,
    left_chunks: int | None = None,
) -> list[str]:
    """Decode best-path texts, one per feature matrix [T, n_mels]; puts the model in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    texts = [""] * len(features)
    for chosen in _batches_by_length([len(row) for row in features], max_batch_frames):
        lens = [len(features[index]) for index in chosen]
        padded = torch.zeros(len(chosen), max(lens), features[chosen[0]].shape[1])
        for row, index in enumerate(chosen):
            padded[row, : lens[row]] = torch.from_numpy(features[index])
        log_probs, output_lens = model(
            padded.to(device),
            torch.tensor(lens, device=device),
            chunk_frames=chunk_frames,
            left_chunks=left_chunks,
        )
        rows = log_probs.float().cpu().numpy()
        for row, index in enumerate(chosen):
            runs = greedy_decode(rows[row, : int(output_lens[row])], vocabulary.blank_id)
            texts[index] = vocabulary.decode(runs.ids.tolist())
    return texts


def evaluate_sets(
    model: ConformerCTC, sets: Sequence[DevSet], vocabulary: Vocabulary, *, max_batch_frames: int
) -> dict[str, ErrorRates]:
    """Compute error rates per dev set name, with full context."""
    return {
        dev.name: compute_error_rates(
            dev.references,
            decode_greedy(model, dev.features, vocabulary, max_batch_frames=max_batch_frames),
            normalization="basic",
        )
        for dev in sets
    }


def _batches_by_length(lens: Sequence[int], max_batch_frames: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in sorted(range(len(lens)), key=lambda i: -lens[i]):
        if batches and (len(batches[-1]) + 1) * lens[batches[-1][0]] <= max_batch_frames:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
