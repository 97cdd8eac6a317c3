"""The streaming outputs of a fixture, NeMo's cache-aware steps or WeNet's chunks, through our code.

golden.npz has, of the last clip, groups of keys `stream_<a>_<b>_...`: `logp<k>` is what step k gave; NeMo's
(a and b are its left and right context) have the step's input in `chunk<k>`, the pre-encode cache in front,
WeNet's (chunk and left chunks, `all` of them perhaps) in golden.json. `_offline_logp` or `_masked_logp` is
the whole clip at once under the same mask, `_ids` the greedy tokens, and there are caches as they are after
the last step.

A step is fed as the original feeds it. NeMo without look-ahead pads the second step's cache with frames of
zeros, where the clip has none; its own streaming differs from its offline output there, and ours, so fed,
follows.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge_asr.checkpoints import Checkpoint
from edge_asr.checkpoints.vocabularies import original_ids, original_order
from edge_asr.export.streaming.graph import make_stream_graph
from edge_asr.export.streaming.proof import TorchStep
from edge_asr.model.config import ContextStyle
from edge_asr.model.streamable import geometry_from_config
from edge_asr.model.streaming import StreamingStep
from edge_asr.proof.streams import Step, open_stream
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.streaming_model import StreamingModel
from golden.fixtures import F32Array, Fixture

_GROUP = re.compile(r"(stream_(-?\d+)_(-?\d+|all))_logp0")


@dataclass(slots=True)
class StreamResult:
    """The worst result of the streams of a fixture; None where nothing was compared.

    Attributes:
        torch: log-probs of each step in PyTorch, fed with the original's input.
        cache: caches after the last step, likewise.
        runtime: log-probs of each step of the exported graph, fed with our features of the sound file.
        whole: log-probs of the exported graph, the same features pushed in pieces, against the original's
            whole clip at once.
        tokens: greedy tokens of `runtime` are the original's.
        dumped: outputs of `runtime`, under the keys of golden.npz.
    """

    torch: float | None = None
    cache: float | None = None
    runtime: float | None = None
    whole: float | None = None
    tokens: bool | None = None
    dumped: dict[str, Any] = dataclasses.field(default_factory=dict)

    def worsen(self, name: str, error: float) -> None:
        """Take in another error; NaN is the worst."""
        setattr(self, name, float(np.maximum(getattr(self, name) or 0.0, error)))


def has_streams(fixture: Fixture) -> bool:
    """Tell whether there is anything to compare."""
    return any(_GROUP.fullmatch(key) for key in fixture.arrays())


def compare_streams(fixture: Fixture, checkpoint: Checkpoint, *, with_runtime: bool = True) -> StreamResult:
    """Run every group of a fixture.

    Raises:
        EdgeAsrError: the checkpoint cannot stream so, or its graph fails a check.
    """
    golden = fixture.arrays()
    result = StreamResult()
    for key in golden:
        match = _GROUP.fullmatch(key)
        if match is None:
            continue
        name = match[1]
        inputs = _inputs(fixture, checkpoint, golden, name)
        context = _context(golden, name, match[2], match[3])
        config = dataclasses.replace(
            checkpoint.model_config,
            attention_context=context,
            attention_context_style=_style(checkpoint),
        )
        model = dataclasses.replace(checkpoint, model_config=config).build_model()
        geometry = geometry_from_config(config, checkpoint.features)
        step = TorchStep(StreamingStep(model, geometry))
        log_probs, caches = _run_steps(step, inputs)
        result.worsen("torch", _error(checkpoint, golden, name, log_probs))
        _compare_caches(result, golden, name, caches)
        if with_runtime:
            graph = make_stream_graph(model, geometry)
            sizes = {"n_mels": config.n_mels, "vocab_size": config.vocab_size, "num_threads": 1}
            with open_stream(graph, geometry, **sizes) as stream:
                _compare_runtime(result, fixture, checkpoint, golden, name, stream, inputs)
    return result


def _style(checkpoint: Checkpoint) -> ContextStyle:
    return checkpoint.facts.attention_context_style or "chunked_limited"


def _context(golden: dict[str, Any], name: str, first: str, second: str) -> tuple[int, int]:
    """(left, right) of our configuration; a left context of everything is as long as the clip."""
    if f"{name}_chunk0" in golden:
        return int(first), int(second)
    chunk = int(first)
    n_steps = sum(1 for key in golden if re.fullmatch(rf"{name}_logp\d+", key))
    return (n_steps if second in ("all", "-1") else int(second)) * chunk, chunk - 1


def _clip(fixture: Fixture) -> int:
    """Number of the clip that was streamed."""
    names = [name for name in fixture.info.get("results", {}) if name.startswith("streaming_clip")]
    return int(names[0].removeprefix("streaming_clip")) if names else len(fixture.clip_paths()) - 1


def _cmvn(checkpoint: Checkpoint) -> tuple[F32Array, F32Array] | None:
    """Mean and 1 / deviation that are part of our model, where NeMo normalizes ahead of the encoder."""
    if checkpoint.provenance.get("format") != "nemo" or not checkpoint.model_config.cmvn:
        return None
    return checkpoint.state_dict["cmvn.mean"].numpy(), checkpoint.state_dict["cmvn.istd"].numpy()


def _inputs(fixture: Fixture, checkpoint: Checkpoint, golden: dict[str, Any], name: str) -> list[F32Array]:
    """Return what the original fed to each step, in our model's form."""
    if f"{name}_chunk0" in golden:
        n_steps = sum(1 for key in golden if re.fullmatch(rf"{name}_chunk\d+", key))
        chunks = [golden[f"{name}_chunk{k}"] for k in range(n_steps)]
        cmvn = _cmvn(checkpoint)
        return chunks if cmvn is None else [chunk / cmvn[1] + cmvn[0] for chunk in chunks]
    clip = _clip(fixture)
    features = golden[f"clip{clip}_feat"][0]
    steps = fixture.info["results"][f"streaming_clip{clip}"][name]["steps"]
    return [features[step["feat_start"] : step["feat_end"]] for step in steps]


def _run_steps(step: Step, inputs: list[F32Array]) -> tuple[list[F32Array], Any]:
    """Valid log-probs of each step, and the caches after the last."""
    caches, outputs = step.initial_caches(), []
    for number, features in enumerate(inputs):
        start, stop = step.geometry.window(number)
        # The last one may be shorter: padded, with its own length.
        window = np.zeros((1, max(stop - start, len(features)), features.shape[1]), np.float32)
        window[0, : len(features)] = features
        log_probs, n_valid, caches = step.run_step(window, np.array([len(features)]), caches)
        outputs.append(log_probs[0, : int(n_valid[0])])
    return outputs, caches


def _error(checkpoint: Checkpoint, golden: dict[str, Any], name: str, log_probs: list[F32Array]) -> float:
    worst = 0.0
    for number, ours in enumerate(log_probs):
        expected = golden[f"{name}_logp{number}"]
        given = original_order(ours, checkpoint.source_blank_id)
        if given.shape != expected.shape:
            raise ValueError(
                f"{name}, step {number}: log-probs {given.shape}, the original's {expected.shape}"
            )
        worst = float(np.maximum(worst, np.abs(given - expected).max(initial=0.0)))
    return worst


def _compare_caches(result: StreamResult, golden: dict[str, Any], name: str, caches: Any) -> None:
    channel, time, _ = caches
    for key, ours in (("cache_last_channel", channel), ("cache_last_time", time), ("cnn_cache_last", time)):
        if f"{name}_{key}" in golden:
            difference = torch.as_tensor(ours[0]) - torch.from_numpy(golden[f"{name}_{key}"])
            result.worsen("cache", float(difference.abs().max()))


def _compare_runtime(
    result: StreamResult,
    fixture: Fixture,
    checkpoint: Checkpoint,
    golden: dict[str, Any],
    name: str,
    stream: StreamingModel,
    inputs: list[F32Array],
) -> None:
    features = FeatureExtractor(checkpoint.features)(fixture.waveforms()[_clip(fixture)])
    cmvn = _cmvn(checkpoint)
    # NeMo's pre-encode cache reaches back over 2 encoder frames, whatever its subsampling reads.
    n_before = 2 if f"{name}_chunk0" in golden else 0
    windows = _windows_as_fed(stream, features, inputs, n_before, 0.0 if cmvn is None else cmvn[0])
    log_probs, caches = _run_steps(stream, windows)
    result.worsen("runtime", _error(checkpoint, golden, name, log_probs))
    ids = original_ids(
        greedy_decode(np.concatenate(log_probs), checkpoint.vocabulary.blank_id).ids.tolist(),
        checkpoint.source_blank_id,
    )
    if f"{name}_ids" in golden:
        result.tokens = result.tokens is not False and ids == golden[f"{name}_ids"].ravel().tolist()
    blank = checkpoint.source_blank_id
    for number, ours in enumerate(log_probs):
        result.dumped[f"{name}_logp{number}"] = original_order(ours, blank)
    result.dumped[f"{name}_ids"] = np.array(ids, np.int64)
    for key, cache in (("cache_last_channel", caches[0]), ("cache_last_time", caches[1])):
        if f"{name}_{key}" in golden:
            result.dumped[f"{name}_{key}"] = cache[0]
    if f"{name}_cnn_cache_last" in golden:
        result.dumped[f"{name}_cnn_cache_last"] = caches[1][0]
    state, pieces = stream.start(), []
    for start in range(0, len(features), 50):
        pieces.append(stream.push(state, features[start : start + 50]))
    pieces.append(stream.flush(state))
    whole = original_order(np.concatenate(pieces), blank)
    key = f"{name}_{'offline' if f'{name}_offline_logp' in golden else 'masked'}_logp"
    result.dumped[key] = whole
    if key not in golden:
        return
    if whole.shape != golden[key].shape:
        raise ValueError(f"{key}: log-probs {whole.shape}, the original's {golden[key].shape}")
    result.worsen("whole", float(np.abs(whole - golden[key]).max()))


def _windows_as_fed(
    stream: StreamingModel,
    features: F32Array,
    inputs: list[F32Array],
    n_before: int,
    padding: F32Array | float,
) -> list[F32Array]:
    """Our features cut as the original cut its own, with its padding before the clip and behind it."""
    geometry = stream.geometry
    most = max(len(window) for window in inputs)
    edge = np.zeros((most, features.shape[1]), np.float32) + np.float32(padding)
    padded = np.concatenate([edge, features, edge])
    windows = []
    for number, window in enumerate(inputs):
        first = number * geometry.chunk_frames - (n_before if number else 0)
        start = first * geometry.subsampling_factor + most
        windows.append(padded[start : start + len(window)])
    return windows
