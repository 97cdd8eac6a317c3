"""Sound to text inside NVIDIA's Triton Inference Server: what model.py of an exported repository imports.

The Python backend calls `TritonPythonModel`. It makes features and decodes with edge_asr.runtime, as
`transcribe` does, and asks another model of the same server, which Triton batches and places, for the
log-probs (business logic scripting). So long recordings, times and confidences are those of `transcribe`.
What this file does not do: write the repository (edge_asr.export.triton).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.names import INPUT_NAMES, OUTPUT_NAME
from edge_asr.errors import BackendError, EdgeAsrError
from edge_asr.frames import OutputFrames
from edge_asr.runtime.decoding.choice import DecoderOptions
from edge_asr.runtime.decoding.decoder import BundleDecoderFactory
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.transcript import Transcript

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]


class TritonBackend:
    """A `Backend` that asks another model of the server.

    Args:
        pb_utils: `triton_python_backend_utils`, which only Triton has.
        model: name of the model.
        precision: of its graph.
        output_frames: how many frames the graph gives.
        max_batch: most rows that it takes at once.
        float_type, length_type: NumPy names of the types of its inputs.
        min_frames, max_frames: fewest and most feature frames that it takes; None if there is no limit.
    """

    name = "triton"
    num_threads: int | None = None

    def __init__(
        self,
        pb_utils: Any,
        model: str,
        precision: str,
        *,
        output_frames: OutputFrames,
        max_batch: int,
        float_type: str = "float32",
        length_type: str = "int64",
        min_frames: int = 1,
        max_frames: int | None = None,
    ) -> None:
        self._pb_utils, self._model = pb_utils, model
        self.precision, self.max_frames = precision, max_frames
        self._output_frames, self._max_batch, self._min_frames = output_frames, max_batch, min_frames
        self._float_type, self._length_type = np.dtype(float_type), np.dtype(length_type)
        self.runtime = f"Triton's model {model}"

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> F32Array:
        """See `Backend`."""
        n_frames = features.shape[1]
        behind = max(self._min_frames - n_frames, 0)
        padded = np.pad(features, ((0, 0), (0, behind), (0, 0)))
        starts = range(0, len(features), self._max_batch)
        parts = [slice(start, start + self._max_batch) for start in starts]
        outputs = [self._ask(padded[rows], feature_lens[rows]) for rows in parts]
        return np.concatenate(outputs)[:, : self._output_frames.n_graph(n_frames)]

    def _ask(self, features: F32Array, feature_lens: I64Array) -> F32Array:
        utils = self._pb_utils
        channels_first = np.ascontiguousarray(features.transpose(0, 2, 1), self._float_type)
        lengths = feature_lens[:, None].astype(self._length_type)
        tensors = [utils.Tensor(n, a) for n, a in zip(INPUT_NAMES, (channels_first, lengths), strict=True)]
        request = utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=[OUTPUT_NAME],
            inputs=tensors,
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            raise BackendError(f"Triton's model {self._model} failed: {response.error().message()}")
        output = utils.get_output_tensor_by_name(response, OUTPUT_NAME).as_numpy()
        return np.asarray(output, np.float32)

    def close(self) -> None:
        """See `Backend`."""


class TritonPythonModel:
    """The model that the Python backend runs; Triton gives its methods their names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle beside model.py and the parameters of config.pbtxt.

        They are `decoder` (greedy or beam), `model`, which is asked for log-probs, and what it takes.
        """
        self._utils = importlib.import_module("triton_python_backend_utils")
        given = json.loads(args["model_config"])["parameters"]
        settings = {key: value["string_value"] for key, value in given.items()}
        bundle = Bundle.load(Path(args["model_repository"], args["model_version"], "bundle"))
        factory = DecoderOptions(decoder=settings.get("decoder")).factory()
        if isinstance(factory, BundleDecoderFactory):
            factory = factory.for_bundle(bundle)
        limits = {name: int(settings[name]) for name in ("min_frames", "max_frames") if name in settings}
        types = {name: settings[name] for name in ("float_type", "length_type") if name in settings}
        factor, first = bundle.info.subsampling_factor, bundle.info.first_output_frames
        backend = TritonBackend(
            self._utils,
            settings["model"],
            settings["precision"],
            output_frames=OutputFrames(factor=factor, first=first),
            max_batch=int(settings["max_batch"]),
            **types,
            **limits,  # type: ignore[arg-type]
        )
        self._recognizer = Recognizer(
            backend,
            features=bundle.info.features,
            vocabulary=bundle.vocabulary,
            subsampling_factor=factor,
            first_output_frames=first,
            bundle=bundle,
            decoder=factory,
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Transcribe what Triton has gathered, similar lengths together; an error concerns its request."""
        clips = [self._clips(request) for request in requests]
        try:
            transcripts = iter(self._recognizer.transcribe_batch([clip for group in clips for clip in group]))
            return [self._response([next(transcripts) for _ in group]) for group in clips]
        except EdgeAsrError:
            return [self._one(group) for group in clips]

    def _one(self, clips: Sequence[tuple[F32Array, int]]) -> Any:
        try:
            return self._response(self._recognizer.transcribe_batch(clips))
        except EdgeAsrError as error:
            return self._utils.InferenceResponse(error=self._utils.TritonError(str(error)))

    def _clips(self, request: Any) -> list[tuple[F32Array, int]]:
        """Return the rows of a request, without what was padded, each with its sample rate."""
        audio, lengths, rates = (
            None if tensor is None else tensor.as_numpy()
            for tensor in (
                self._utils.get_input_tensor_by_name(request, name)
                for name in ("AUDIO", "AUDIO_LENGTH", "SAMPLE_RATE")
            )
        )
        assert audio is not None
        n_rows, n_samples = audio.shape
        lengths = np.full(n_rows, n_samples) if lengths is None else lengths.reshape(-1)
        rates = np.full(n_rows, self._recognizer.features.sample_rate) if rates is None else rates.reshape(-1)
        return [
            (row[: max(int(n), 0)], int(rate)) for row, n, rate in zip(audio, lengths, rates, strict=True)
        ]

    def _response(self, transcripts: Sequence[Transcript]) -> Any:
        confidences = [
            sum(w.confidence for w in t.words) / len(t.words) if t.words else 0.0 for t in transcripts
        ]
        columns = {
            "TEXT": np.array([[t.text.encode()] for t in transcripts], object),
            "CONFIDENCE": np.array(confidences, np.float32)[:, None],
            "JSON": np.array([[json.dumps(t.to_dict()).encode()] for t in transcripts], object),
        }
        return self._utils.InferenceResponse(
            output_tensors=[self._utils.Tensor(name, values) for name, values in columns.items()]
        )

    def finalize(self) -> None:
        """Release what was loaded."""
        self._recognizer.close()
