"""Runs an attention decoder: the frames of an utterance once, then tokens step by step, or whole texts.

One network serves both, because a step is a text of one token behind a state. What the rest of this package
needs of it is `DecoderNetwork`, so that it knows neither files nor onnxruntime.
What this file does not do: search (search.py), combine scores (rescoring.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import DecoderGraphs
from edge_asr.bundle.names import (
    DECODER_CROSS,
    DECODER_LENGTHS,
    DECODER_NEXT,
    DECODER_STATE,
    DECODER_TOKENS,
    ENCODED_NAME,
    OUTPUT_NAME,
)
from edge_asr.errors import BackendError
from edge_asr.runtime.decoding.decoder import F32Array, I64Array
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend

#: The state of a batch of beginnings; each array has the batch on the axis that `batch_axes` names.
State = tuple[F32Array, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """What the steps of one utterance attend to.

    Attributes:
        cross: tensors of the network, for a batch of one.
        n_frames: frames of the encoder, at least one.
    """

    cross: tuple[F32Array, ...]
    n_frames: int


class DecoderNetwork(Protocol):
    """An attention decoder. Safe to call from several threads.

    Attributes:
        sos_id, eos_id: the token before the first, and the one that ends a text.
        n_tokens: outputs; the first are those of the vocabulary.
        batch_axes: of each array of the state.
    """

    sos_id: int
    eos_id: int
    n_tokens: int
    batch_axes: tuple[int, ...]

    def attend(self, encoded: F32Array) -> Memory:
        """Take the frames [T, D] of an utterance, T >= 1."""
        ...

    def start(self, batch: int) -> State:
        """Return the state before the first token."""
        ...

    def advance(self, tokens: I64Array, state: State, memory: Memory) -> tuple[F32Array, State]:
        """Take tokens [B, U] behind a state; U > 1 gives the same as U steps.

        Returns:
            Log-probs [B, U, V] of what comes after each of them, and the next state.

        Raises:
            BackendError: the run failed, or gave something that is not finite.
        """
        ...


def select_beams(state: State, axes: Sequence[int], beams: npt.NDArray[np.intp]) -> State:
    """Return the state of some of the beginnings, each as often as it is named."""
    return tuple(np.take(array, beams, axis) for array, axis in zip(state, axes, strict=True))


class OnnxDecoder:
    """A `DecoderNetwork` run by onnxruntime.

    Args:
        cross: runs the graph that takes the frames of an utterance; closed with this.
        steps: runs the graph that takes tokens; closed with this.
        state: shapes of the state, see `DecoderGraphs`.
        n_tokens, sos_id, eos_id: see `DecoderNetwork`.
    """

    def __init__(
        self,
        cross: OnnxRuntimeBackend,
        steps: OnnxRuntimeBackend,
        state: Sequence[Sequence[int]],
        *,
        n_tokens: int,
        sos_id: int,
        eos_id: int,
    ) -> None:
        self.n_tokens, self.sos_id, self.eos_id = n_tokens, sos_id, eos_id
        self.batch_axes = tuple(list(shape).index(-1) for shape in state)
        self.precision = steps.precision
        self._cross, self._steps, self._shapes = cross, steps, state
        self._cross_names = [name for name in cross.output_names if name.startswith(DECODER_CROSS)]
        self._outputs = (OUTPUT_NAME, *(f"{DECODER_NEXT}{i}" for i in range(len(state))))

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        graphs: DecoderGraphs,
        *,
        precision: str = "fp32",
        device: str = "cpu",
        num_threads: int | None = None,
    ) -> OnnxDecoder:
        """Load a decoder of a bundle.

        Args:
            bundle: has an attention decoder.
            graphs: one of its directions.
            precision: "int8" takes the INT8 file, if there is one and it was measured to be faster.
            device: "cpu" or "cuda".
            num_threads: see `OnnxRuntimeBackend`.

        Raises:
            BundleError: the bundle has no attention decoder.
            MissingDependencyError, BackendError: see `OnnxRuntimeBackend`.
        """
        info = bundle.decoder
        steps = graphs.steps
        if precision == "int8" and graphs.int8 is not None and (graphs.int8.cpu_time_over_fp32 or 0.0) < 1.0:
            steps = graphs.int8
        cross, advance = (
            OnnxRuntimeBackend(
                bundle.path / artifact.file,
                precision=artifact.precision,
                device=device,
                num_threads=num_threads,
            )
            for artifact in (graphs.cross, steps)
        )
        return cls(
            cross, advance, graphs.state, n_tokens=info.n_tokens, sos_id=info.sos_id, eos_id=info.eos_id
        )

    def attend(self, encoded: F32Array) -> Memory:
        """See `DecoderNetwork`."""
        cross = self._cross.run(self._cross_names, {ENCODED_NAME: np.ascontiguousarray(encoded[None])})
        return Memory(tuple(cross), len(encoded))

    def start(self, batch: int) -> State:
        """See `DecoderNetwork`."""
        return tuple(np.zeros([batch if n == -1 else n for n in shape], np.float32) for shape in self._shapes)

    def advance(self, tokens: I64Array, state: State, memory: Memory) -> tuple[F32Array, State]:
        """See `DecoderNetwork`."""
        feeds = {DECODER_TOKENS: tokens, DECODER_LENGTHS: np.array([memory.n_frames])}
        feeds |= {f"{DECODER_STATE}{i}": array for i, array in enumerate(state)}
        feeds |= dict(zip(self._cross_names, memory.cross, strict=True))
        log_probs, *following = self._steps.run(self._outputs, feeds)
        if log_probs.shape != (*tokens.shape, self.n_tokens):
            raise BackendError(
                f"the decoder gave {list(log_probs.shape)} for tokens {list(tokens.shape)}, its bundle "
                f"describes {self.n_tokens} outputs; export the model again"
            )
        if np.isnan(log_probs.sum()):
            raise BackendError("the decoder gave NaN; use precision='fp32', or export the model again")
        return log_probs, tuple(following)

    def close(self) -> None:
        """Release both graphs. May be called twice."""
        self._cross.close()
        self._steps.close()
