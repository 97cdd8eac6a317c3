"""Proves the graphs of an attention decoder against PyTorch: whole texts, and step by step.

The truth is the decoder in float64 over the same frames, and the graph's error must be within a small factor
of PyTorch float32's own, as for every float32 graph (edge_asr.proof.truth). Cases: what CTC hears in the real
clips, over their frames; random texts of every length up to a few, and long ones, over one frame and many;
beams of one utterance, that change places between steps. What the encoder's graph gives the decoder is proven
likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from edge_asr.graph.decoder import DirectionGraphs
from edge_asr.graph.session import open_graph
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import LogProbs, Outputs, ProofStep, RoundingBar, run_cases
from edge_asr.proof.inputs import FLOAT32_NAME, ProofInputs
from edge_asr.proof.streams import STREAMED_NAME
from edge_asr.proof.truth import Truth, compare_to_truth, run_truth
from edge_asr.runtime.backends import EncodingBackend
from edge_asr.runtime.decoding.attention.network import DecoderNetwork, select_beams
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.streaming_model import StreamingModel
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx
    import torch

    from edge_asr.model.ctc import ConformerCTC
    from edge_asr.model.decoders import AttentionDecoder

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]

_ENCODER_FAMILIES = ("real", "subsampling_edge", "padded")
_MAX_TOKENS = 256
_BAR = RoundingBar(text_families=())  # an output is no text


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderCase:
    """Texts of one utterance.

    Attributes:
        family, name: as of `ProofCase`.
        encoded: [T, D] frames of the encoder.
        tokens: [B, U], each row begins with what begins a text.
    """

    family: str
    name: str
    encoded: F32Array
    tokens: I64Array

    def as_proof_case(self) -> ProofCase:
        """Return what a report needs of it."""
        return ProofCase(family=self.family, name=self.name, features=(self.encoded,) * len(self.tokens))


def prove_encoder(model: ConformerCTC, graph: onnx.ModelProto, inputs: ProofInputs) -> ProofStep:
    """Compare what the graph gives a decoder with the encoder in PyTorch; the model becomes float64.

    Raises:
        GateError: the encoder itself failed.
    """
    cases = [case for case in inputs.cases if case.family in _ENCODER_FAMILIES]
    with open_graph(graph) as backend:
        outputs = run_cases(_Encoder(backend), cases, inputs.output_frames)
    return _compare_encoders(model, "PyTorch", outputs, FLOAT32_NAME, cases)


def prove_streamed_encoder(
    model: ConformerCTC, stream: StreamingModel, cases: Sequence[ProofCase]
) -> ProofStep:
    """Compare what a streaming graph gives a decoder with the offline encoder of the same context.

    Args:
        model: with the context of the stream; it becomes float64.
        stream: the graph, which gets each clip whole.
        cases: from `stream_cases`; those of several rows are left out.
    """
    cases = [case for case in cases if len(case.features) == 1]
    outputs = run_cases(_StreamedEncoder(stream), cases, model.config.output_frames)
    return _compare_encoders(model, "PyTorch with the stream's context", outputs, STREAMED_NAME, cases)


def _compare_encoders(
    model: ConformerCTC, name: str, outputs: Outputs, graph_name: str, cases: Sequence[ProofCase]
) -> ProofStep:
    frames, width = model.config.output_frames, model.config.d_model
    truth = run_truth(_encoder_of(model.float()), cases, frames, name=f"{name} encoder")
    return compare_to_truth(truth, outputs, cases, _numbers(width), name=f"{graph_name} encoder", bar=_BAR)


def prove_direction(
    decoder: AttentionDecoder, graphs: DirectionGraphs, cases: Sequence[DecoderCase], *, name: str
) -> tuple[ProofStep, ...]:
    """Compare the graphs of one decoder with PyTorch, over whole texts and step by step.

    Args:
        decoder: in float32; it becomes float64.
        graphs: made of it.
        cases: from `decoder_cases`.
        name: "decoder", or that of a second one.
    """
    proof_cases = [case.as_proof_case() for case in cases]
    rounded = {n: _run_torch(decoder, case) for n, case in enumerate(cases)}
    decoder.double()
    exact: Outputs = [_run_torch(decoder, case) for case in cases]
    truth = Truth(name=f"PyTorch {name}", exact=exact, rounded=rounded)
    steps = []
    with graphs.open() as network:
        for run, how in ((run_whole, ""), (run_in_steps, ", step by step")):
            outputs: Outputs = [run(network, case) for case in cases]
            steps.append(
                compare_to_truth(
                    truth,
                    outputs,
                    proof_cases,
                    _numbers(decoder.n_tokens),
                    name=f"ONNX {name}{how}",
                    bar=_BAR,
                )
            )
    return tuple(steps)


def decoder_cases(
    model: ConformerCTC, decoder: AttentionDecoder, inputs: ProofInputs, *, reverse: bool = False
) -> list[DecoderCase]:
    """Build the cases of a proof.

    Args:
        model: in float32.
        decoder: one of its decoders.
        inputs: of the export, whose real clips are used.
        reverse: whether the decoder reads texts from the last token to the first.
    """
    import torch

    random = np.random.default_rng(0)
    cases = []

    def add(family: str, name: str, encoded: F32Array, texts: Sequence[Sequence[int]]) -> None:
        rows = [[decoder.sos_id, *(text[::-1] if reverse else text)][:_MAX_TOKENS] for text in texts]
        cases.append(DecoderCase(family=family, name=name, encoded=encoded, tokens=np.array(rows)))

    for case in inputs.cases:
        if case.family == "real":
            features = torch.from_numpy(case.features[0])[None]
            with torch.inference_mode():
                encoded, lengths = model.encode(features, torch.tensor([features.shape[1]]))
                log_probs = model.head(encoded)[0, : int(lengths[0])].numpy()
            heard = greedy_decode(log_probs, inputs.vocabulary.blank_id).ids.tolist()
            if int(lengths[0]):
                add("real", case.name, encoded[0, : int(lengths[0])].numpy(), [heard])
    width, n_ids = model.config.d_model, min(len(inputs.vocabulary), decoder.n_tokens)

    def random_texts(n_rows: int, length: int) -> list[list[int]]:
        texts: list[list[int]] = random.integers(0, n_ids, (n_rows, length)).tolist()
        return texts

    def memory(n_frames: int) -> F32Array:
        return random.standard_normal((n_frames, width)).astype(np.float32)

    for length, n_frames in ((0, 1), (1, 1), (2, 3), (7, 40), (60, 250), (120, 750)):
        add("random_length", f"{length} tokens, {n_frames} frames", memory(n_frames), random_texts(1, length))
    for n_rows in range(2, 9):
        add("batch", f"{n_rows} beams", memory(20 + n_rows), random_texts(n_rows, 9))
    return cases


def run_whole(network: DecoderNetwork, case: DecoderCase) -> tuple[LogProbs, ...]:
    """Run all tokens at once; rows [U, V]."""
    memory = network.attend(case.encoded)
    return tuple(network.advance(case.tokens, network.start(len(case.tokens)), memory)[0])


def run_in_steps(network: DecoderNetwork, case: DecoderCase) -> tuple[LogProbs, ...]:
    """Run token by token; halfway the beams change places, as they do in a search."""
    memory, n_rows = network.attend(case.encoded), len(case.tokens)
    order = np.arange(n_rows)
    state, columns = network.start(n_rows), []
    for number in range(case.tokens.shape[1]):
        if number == case.tokens.shape[1] // 2:
            order = order[::-1]
            state = select_beams(state, network.batch_axes, np.arange(n_rows)[::-1])
        log_probs, state = network.advance(case.tokens[order, number : number + 1], state, memory)
        columns.append(log_probs[np.argsort(order), 0])
    return tuple(np.stack(columns, axis=1))


def _run_torch(decoder: AttentionDecoder, case: DecoderCase) -> tuple[LogProbs, ...]:
    import torch

    dtype = next(decoder.parameters()).dtype
    with torch.inference_mode():
        cross = decoder.cross(torch.from_numpy(case.encoded)[None].to(dtype))
        state = decoder.initial_state(len(case.tokens))
        log_probs, _ = decoder.advance(
            torch.from_numpy(case.tokens), state, cross, torch.tensor([len(case.encoded)])
        )
    return tuple(cast("LogProbs", log_probs.numpy()))


class _Encoder:
    """What a graph gives a decoder, as a `LogProbModel`."""

    def __init__(self, backend: EncodingBackend) -> None:
        self._backend = backend

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> LogProbs:
        """See `LogProbModel`."""
        return self._backend.encode(features, feature_lens)[1]


class _StreamedEncoder:
    """What a streaming graph gives a decoder of a clip, as a `LogProbModel` of one row."""

    def __init__(self, stream: StreamingModel) -> None:
        self._stream = stream

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> LogProbs:
        """See `LogProbModel`."""
        state = self._stream.start()
        pushed = self._stream.push_features(state, features[0, : int(feature_lens[0])])
        parts = [one for one in (pushed, self._stream.finish(state)) if len(one)]
        frames = [one.encoded for one in parts if one.encoded is not None]
        return np.concatenate(frames)[None] if frames else np.zeros((1, 0, 1), np.float32)


def _encoder_of(model: ConformerCTC) -> torch.nn.Module:
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, features: torch.Tensor, feature_lens: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return model.encode(features, feature_lens)

    return Encoder()


def _numbers(n_outputs: int) -> Vocabulary:
    """Name outputs by their numbers, for comparisons that want a vocabulary; a blank that is none of them."""
    names = tuple(f"<{n}>" for n in range(n_outputs))
    return Vocabulary(kind="sentencepiece", tokens=(*names, "<none>"), blank_id=n_outputs)
