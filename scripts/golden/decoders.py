"""Compares the attention decoders of a fixture with what its project's own code made of them.

It gives our decoders the original's encoder output and texts, and compares the log-probs of every token, the
scores and winners of rescoring, and the texts that searches find; in PyTorch, or as exported files in the
runtime. Keys of golden.npz: scripts/golden/make/decoders.py, wenet_decoder.py and espnet_decoder.py.
What this file does not do: compare encoders (compare.py), judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_asr.bundle.folder import Bundle
from edge_asr.checkpoints import Checkpoint
from edge_asr.checkpoints.vocabularies import original_order
from edge_asr.model.decoders import AttentionDecoder
from edge_asr.runtime.decoding.attention.ctc_prefix import CtcPrefixScorer
from edge_asr.runtime.decoding.attention.network import DecoderNetwork, Memory, OnnxDecoder, State
from edge_asr.runtime.decoding.attention.rescoring import score_texts
from edge_asr.runtime.decoding.attention.search import SearchOptions, search_texts
from golden.fixtures import Fixture

I64Array = npt.NDArray[np.int64]
Networks = tuple[DecoderNetwork, DecoderNetwork | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderResult:
    """The largest differences over all clips, and whether all texts are the same.

    Attributes:
        log_probs: of whole texts, both directions.
        scores: of rescoring, and of searches where the original says them; None without either.
        texts: winners of rescoring and results of searches are identical.
    """

    log_probs: float
    scores: float | None
    texts: bool


def has_decoder(fixture: Fixture) -> bool:
    """Whether the fixture has outputs of a decoder."""
    return "decoder" in fixture.info


class TorchNetwork:
    """A PyTorch decoder as the runtime's searches want it."""

    batch_axes: tuple[int, ...] = (1, 1)

    def __init__(self, decoder: AttentionDecoder) -> None:
        self._decoder = decoder
        self.sos_id, self.eos_id, self.n_tokens = decoder.sos_id, decoder.eos_id, decoder.n_tokens

    @torch.inference_mode()
    def attend(self, encoded: npt.NDArray[np.float32]) -> Memory:
        """See `DecoderNetwork`."""
        cross = self._decoder.cross(torch.from_numpy(encoded)[None])
        return Memory(tuple(part.numpy() for part in cross), len(encoded))

    def start(self, batch: int) -> State:
        """See `DecoderNetwork`."""
        return tuple(part.detach().numpy() for part in self._decoder.initial_state(batch))

    @torch.inference_mode()
    def advance(
        self, tokens: I64Array, state: State, memory: Memory
    ) -> tuple[npt.NDArray[np.float32], State]:
        """See `DecoderNetwork`."""
        log_probs, following = self._decoder.advance(
            torch.from_numpy(tokens),
            tuple(torch.from_numpy(part) for part in state),
            tuple(torch.from_numpy(part) for part in memory.cross),
            torch.tensor([memory.n_frames]),
        )
        return log_probs.numpy(), tuple(part.numpy() for part in following)


def torch_networks(checkpoint: Checkpoint) -> Networks:
    """The decoders of a checkpoint, the second from right to left."""
    model = checkpoint.build_model()
    assert model.decoder is not None
    left: DecoderNetwork = TorchNetwork(model.decoder)
    return left, None if model.right_decoder is None else TorchNetwork(model.right_decoder)


def bundle_networks(bundle: Bundle) -> Networks:
    """The decoders of a bundle, run by onnxruntime in float32."""
    left, right = (
        None if graphs is None else OnnxDecoder.load(bundle, graphs, num_threads=1)
        for graphs in (bundle.decoder.left, bundle.decoder.right)
    )
    assert left is not None
    return left, right


def compare_decoders(fixture: Fixture, source_blank_id: int, networks: Networks) -> DecoderResult:
    """Run the decoders over all clips of a fixture."""
    golden, info = fixture.arrays(), fixture.info["decoder"]
    log_probs, scores, same = [0.0], [], True
    for index in range(len(fixture.clip_paths())):
        clip = _Clip(golden, f"clip{index}", source_blank_id, networks)
        log_probs += clip.log_prob_errors()
        found = [*_rescoring(clip, info), *_searches(clip, info)]
        scores += [error for error, _ in found if error is not None]
        same = same and all(equal for _, equal in found)
    worst = float(np.max(scores)) if scores else None  # NaN is the worst
    return DecoderResult(log_probs=float(np.max(log_probs)), scores=worst, texts=same)


class _Clip:
    """One clip of a fixture: the original's arrays, with tokens numbered as ours."""

    def __init__(self, golden: dict[str, Any], key: str, blank: int, networks: Networks) -> None:
        self.golden, self.key, self.blank, self.networks = golden, key, blank, networks
        self.encoded = golden[f"{key}_enc"][0]
        self.memories = [None if network is None else network.attend(self.encoded) for network in networks]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = self.golden[f"{self.key}_{name}"]
        return array

    def __contains__(self, name: str) -> bool:
        return f"{self.key}_{name}" in self.golden

    def texts(self, rows: npt.NDArray[Any]) -> list[I64Array]:
        """Rows of tokens, -1 behind."""
        return [row[row >= 0] - (row[row >= 0] > self.blank) for row in np.atleast_2d(rows)]

    def directions(self) -> Iterator[tuple[str, DecoderNetwork, Memory, int]]:
        """Name, decoder and memory of each direction, and the step through a text."""
        for name, network, memory, step in zip(
            ("dec", "dec_right"), self.networks, self.memories, (1, -1), strict=True
        ):
            assert (name in self) == (network is not None), f"{name} is on one side alone"
            if network is not None and memory is not None:
                yield name, network, memory, step

    def log_prob_errors(self) -> list[float]:
        """Largest difference of each text, that the decoder reads alone."""
        errors = []
        for name, network, memory, step in self.directions():
            for text, expected in zip(self.texts(self["forced"]), self[name], strict=True):
                tokens = np.array([[network.sos_id, *text[::step]]])
                log_probs, _ = network.advance(tokens, network.start(1), memory)
                ours = original_order(log_probs[0], self.blank)
                errors.append(float(np.abs(ours - expected[: len(ours)]).max()))
        return errors


def _rescoring(clip: _Clip, info: dict[str, Any]) -> Iterator[tuple[float | None, bool]]:
    """Error of the scores by WeNet's formula, and whether the same text wins, by setting."""
    if "rescoring" not in info:
        return
    texts = clip.texts(clip["hyps"])
    sums = [score_texts(net, memory, texts, reverse=s < 0) for _, net, memory, s in clip.directions()]
    n_found = len(texts) - 2  # the last two are not of the original's search
    for k, setting in enumerate(info["rescoring"]):
        share = setting["reverse_weight"]
        scores = sums[0] if not share else (1 - share) * sums[0] + share * sums[1]
        scores = scores + setting["ctc_weight"] * clip["ctc_scores"]
        error = float(np.abs(scores - clip[f"rescoring_{k}"]).max())
        yield error, int(scores[:n_found].argmax()) == int(clip[f"rescoring_{k}_best"])


def _searches(clip: _Clip, info: dict[str, Any]) -> Iterator[tuple[float | None, bool]]:
    """Error of the best text's score where the original says it, and whether it is the same, by setting."""
    network, memory = clip.networks[0], clip.memories[0]
    assert memory is not None
    for k, setting in enumerate(info["beams"]):
        options, ctc = _search_options(info["search"], setting, len(clip.encoded)), None
        if options.ctc_weight:
            log_probs = clip["logp"][0]
            ours = np.roll(log_probs, -1, axis=1)  # the blank is first there, and last here
            ctc = CtcPrefixScorer(ours, ours.shape[1] - 1)
        found = search_texts(network, memory, options, ctc=ctc)[0]
        text = clip.texts(clip[f"beam_{k}"])[0]
        ends = np.flatnonzero(text == network.eos_id)
        text = text[: ends[0]] if len(ends) else text
        error = None
        if f"beam_{k}_scores" in clip:
            error = abs(found.score - float(clip[f"beam_{k}_scores"][0]))
        yield error, list(found.ids) == text.tolist()


def _search_options(search: str, setting: dict[str, Any], n_frames: int) -> SearchOptions:
    """The original's search as ours."""
    if search == "wenet":
        return SearchOptions(**setting, ctc_weight=0.0, keep_ended=True, hopeless=None)
    ratio = setting["maxlenratio"]
    return SearchOptions(
        beam_size=setting["beam_size"],
        ctc_weight=setting["ctc_weight"],
        length_penalty=float(setting["normalize_length"]),
        max_tokens=max(1, int(ratio * n_frames)) if ratio else None,
        keep_ended=False,
    )
