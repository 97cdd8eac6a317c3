"""The graphs of one attention decoder in memory, and running them as a bundle's would run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_asr.bundle.folder import Bundle
from edge_asr.graph.session import open_graph
from edge_asr.runtime.decoding.attention.network import OnnxDecoder

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionGraphs:
    """The graphs of one decoder.

    Attributes:
        cross, steps: decoder_cross.onnx and decoder.onnx (edge_asr.export.decoders.graph).
        state: shapes of the state before the first token: -1 is the batch, 0 the axis that grows.
        n_tokens, sos_id, eos_id: see `DecoderNetwork`.
    """

    cross: onnx.ModelProto
    steps: onnx.ModelProto
    state: tuple[tuple[int, ...], ...]
    n_tokens: int
    sos_id: int
    eos_id: int

    @contextmanager
    def open(self, *, num_threads: int | None = None) -> Iterator[OnnxDecoder]:
        """Open them with onnxruntime, until the end of the block.

        Raises:
            BackendError: onnxruntime cannot load one.
        """
        with (
            open_graph(self.cross, num_threads=num_threads) as cross,
            open_graph(self.steps, num_threads=num_threads) as steps,
        ):
            ids = {"n_tokens": self.n_tokens, "sos_id": self.sos_id, "eos_id": self.eos_id}
            yield OnnxDecoder(cross, steps, self.state, **ids)


def load_directions(bundle: Bundle) -> tuple[DirectionGraphs, ...]:
    """Load the float32 graphs of a bundle's decoder: from left to right and, if there is one, the other.

    Raises:
        BundleError: the bundle has no decoder.
    """
    import onnx

    info = bundle.decoder
    return tuple(
        DirectionGraphs(
            cross=onnx.load(bundle.path / one.cross.file),
            steps=onnx.load(bundle.path / one.steps.file),
            state=one.state,
            n_tokens=info.n_tokens,
            sos_id=info.sos_id,
            eos_id=info.eos_id,
        )
        for one in (info.left, info.right)
        if one is not None
    )
