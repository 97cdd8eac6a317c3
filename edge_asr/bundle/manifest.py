"""The data of bundle.json, validated on creation; unknown keys are errors.

It needs only the standard library and the modules at the top of edge_asr. folder.py reads the file, writer.py
writes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge_asr.bundle.names import MANIFEST_NAME
from edge_asr.errors import BundleError
from edge_asr.feature_config import FeatureConfig
from edge_asr.frames import OutputFrames
from edge_asr.records import json_from_record, record_from_json
from edge_asr.vocabulary import VocabularyKind

if TYPE_CHECKING:
    from edge_asr.stream_geometry import StreamingGeometry

FORMAT_VERSION = 1
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuGraph:
    """An artifact as onnxruntime's CPU provider rewrites it on loading: the same numbers, loaded sooner.

    Attributes:
        file: name inside the bundle folder.
        sha256: hash of the file, lower-case hex.
        size_bytes: size of the file.
        onnxruntime: version that wrote it; older versions take the artifact itself.
        weights_file: the artifact whose file holds its large weights; None if its own does.
    """

    file: str
    sha256: str
    size_bytes: int
    onnxruntime: str
    weights_file: str | None = None

    def __post_init__(self) -> None:
        _check_file_name(self.file)
        if self.weights_file is not None:
            _check_file_name(self.weights_file)
        if not re.match(r"\d+\.\d+", self.onnxruntime):
            raise BundleError(f"{self.file} names onnxruntime {self.onnxruntime!r}; a version is like 1.32.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One model file of a bundle.

    Attributes:
        file: name inside the bundle folder.
        precision: arithmetic of the graph: "fp32", "fp16" or "int8".
        weights: how the weights are stored: "fp32", "fp16" (cast to float32 on load) or "int8".
        sha256: hash of the file, lower-case hex.
        opset: ONNX opset of the default domain.
        ir_version: ONNX IR version (<= 10, so that onnxruntime 1.23 loads it).
        size_bytes: size of the file.
        cpu_time_over_fp32: encoder time of this file over that of the fp32 file on onnxruntime's CPU, one
            thread, measured where the file was made; None if not measured. `--precision auto` on a CPU
            skips a file that is not faster.
        cpu_graph: the copy for onnxruntime on a CPU; None without one.
    """

    file: str
    precision: Precision
    weights: Literal["fp32", "fp16", "int8"]
    sha256: str
    opset: int
    ir_version: int
    size_bytes: int
    cpu_time_over_fp32: float | None = None
    cpu_graph: CpuGraph | None = None

    def __post_init__(self) -> None:
        _check_file_name(self.file)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingInfo:
    """The streaming graph of a bundle.

    Attributes:
        artifact: the float32 file; in a bundle without one, the INT8 file.
        geometry: what a step takes and gives.
        int8: the INT8 file beside the float32 one; None without one, and in bundles of older versions.
    """

    artifact: Artifact
    geometry: StreamingGeometry
    int8: Artifact | None = None

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Return every file of the graph."""
        return (self.artifact,) if self.int8 is None else (self.artifact, self.int8)

    def find(self, precision: str) -> Artifact:
        """Return the file of a precision, or else the first one."""
        return next((a for a in self.artifacts if a.precision == precision), self.artifact)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderGraphs:
    """The files of one attention decoder.

    Attributes:
        cross: makes of the frames of the encoder what every step attends to, once an utterance.
        steps: takes tokens and a state, and gives log-probs and the next state.
        int8: the steps in INT8; None without them.
        state: shapes of the state before the first token: -1 is the batch, 0 the axis that grows.
    """

    cross: Artifact
    steps: Artifact
    state: tuple[tuple[int, ...], ...]
    int8: Artifact | None = None

    def __post_init__(self) -> None:
        for shape in self.state:
            if shape.count(-1) != 1 or min(shape) < -1:
                raise BundleError(
                    f"state of the decoder has the shape {list(shape)}; it needs one -1, the batch"
                )

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Return every file."""
        return (self.cross, self.steps, *(() if self.int8 is None else (self.int8,)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionDecoderInfo:
    """The attention decoder of a bundle.

    Attributes:
        kind: what it is made of, such as "recurrent" or "transformer".
        n_tokens: outputs; the first are those of tokens.txt.
        sos_id, eos_id: the token before the first, and the one that ends a text.
        left: from the first token to the last.
        ctc_weight: share of CTC in the scores, the rest is the decoder's; 0 to 1.
        reverse_weight: share of `right` in the decoder's scores, 0 to 1.
        right: from the last token to the first; None without one.
    """

    kind: str
    n_tokens: int
    sos_id: int
    eos_id: int
    left: DecoderGraphs
    ctc_weight: float
    reverse_weight: float = 0.0
    right: DecoderGraphs | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.sos_id < self.n_tokens and 0 <= self.eos_id < self.n_tokens):
            raise BundleError(
                f"the decoder begins with {self.sos_id} and ends with {self.eos_id}, and has {self.n_tokens} "
                "tokens; export the model again"
            )
        for name in ("ctc_weight", "reverse_weight"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BundleError(f"{name} of the decoder is {getattr(self, name)}; it lies from 0 to 1")

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Return every file of both directions."""
        return (*self.left.artifacts, *(() if self.right is None else self.right.artifacts))


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelFile:
    """The language model that beam search uses with this bundle.

    Attributes:
        file: name inside the bundle folder.
        sha256: hash of the file, lower-case hex.
        size_bytes: size of the file.
        weights: how much it has to say with this model, in the place of what the file says; None leaves it.
    """

    file: str
    sha256: str
    size_bytes: int
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        _check_file_name(self.file)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """A clip, and what the exporter heard of it, with which a machine can check itself.

    Attributes:
        clip: name of a sound file inside the bundle folder.
        sha256: hash of that file, lower-case hex.
        references: by precision: `text`, by greedy search; `argmax`, the best token of each frame; `values`,
            its log-prob in steps of 1/64. Numbers are separated by spaces.
        stream: the same of the streaming graph; None without one, and in bundles of older versions.
    """

    clip: str
    sha256: str
    references: Mapping[str, Mapping[str, str]]
    stream: Mapping[str, Mapping[str, str]] | None = None

    def __post_init__(self) -> None:
        _check_file_name(self.clip)
        for precision, reference in (*self.references.items(), *(self.stream or {}).items()):
            if set(reference) != {"text", "argmax", "values"}:
                raise BundleError(
                    f"self_test of {precision} has {', '.join(reference)}; it needs text, argmax and values"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarThresholds:
    """What a letter of a grammar's phrase may cost with this model, by the mode of the grammar; positive.

    Attributes:
        whole, spot: None where it is not known.
    """

    whole: float | None = None
    spot: float | None = None

    def __post_init__(self) -> None:
        for mode, value in (("whole", self.whole), ("spot", self.spot)):
            if value is not None and not 0.0 < value < math.inf:
                raise BundleError(
                    f"the grammar threshold {mode} is {value}; it must be a positive number, as "
                    "`edge-asr grammar tune --save` writes"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInfo:
    """Content of bundle.json, validated on creation.

    Attributes:
        name: short name of the model, such as "tiny-en".
        family: model family, "conformer-ctc".
        preset: size preset or null.
        n_parameters: trained parameters.
        features: the exact front end.
        subsampling_factor: feature frames per output frame.
        first_output_frames: feature frames that the first output frame needs (`edge_asr.frames`); with 1,
            a clip of T frames has ceil(T / factor) output frames.
        vocabulary_kind, vocabulary_size, blank_id: those of tokens.txt; the size counts the blank.
        tokens_sha256: hash of tokens.txt, lower-case hex; None in bundles of older versions.
        self_test: what a machine needs to check itself; None in bundles of older versions.
        streaming: the streaming graph and its geometry, null for an offline bundle.
        artifacts: one entry per offline model file.
        source: where the weights came from.
        verification: results of the proof; details are in report.json.
        verified: false for a bundle kept by `--keep-failed`.
        toolkit_version: version of edge-asr that wrote it.
        language_model: what beam search uses by default; null without one.
        grammar: thresholds for grammars; null where nobody tuned them.
        decoder: the attention decoder; absent without one.
    """

    name: str
    family: str
    preset: str | None
    n_parameters: int
    features: FeatureConfig
    subsampling_factor: int
    vocabulary_kind: VocabularyKind
    vocabulary_size: int
    blank_id: int
    artifacts: tuple[Artifact, ...]
    source: Mapping[str, Any]
    verification: Mapping[str, Any]
    verified: bool
    toolkit_version: str
    streaming: StreamingInfo | None = None
    first_output_frames: int = 1
    tokens_sha256: str | None = None
    language_model: LanguageModelFile | None = None
    self_test: SelfTest | None = None
    grammar: GrammarThresholds | None = None
    decoder: AttentionDecoderInfo | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.subsampling_factor < 1:
            raise BundleError(f"subsampling_factor is {self.subsampling_factor}; it must be 1 or more")
        if not self.artifacts:
            raise BundleError("the bundle lists no artifact; export the model again")
        if self.streaming is not None:
            self._check_streaming(self.streaming.geometry)

    def _check_streaming(self, geometry: StreamingGeometry) -> None:
        frame_ms = 1000 * self.subsampling_factor * self.features.hop_length / self.features.sample_rate
        for name, streamed, offline in (
            ("output frames", geometry.output_frames, self.output_frames),
            ("frame_ms", geometry.frame_ms, frame_ms),
            ("normalize of the features", "none", self.features.normalize),
        ):
            if streamed != offline:
                raise BundleError(
                    f"{name}: the streaming graph has {streamed}, the bundle {offline}; export it again"
                )

    @property
    def output_frames(self) -> OutputFrames:
        """Return the rule for how many output frames a clip has."""
        return OutputFrames(factor=self.subsampling_factor, first=self.first_output_frames)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the inverse of `from_dict`."""
        data: dict[str, Any] = json_from_record(self)
        if self.decoder is None:
            del data["decoder"]  # versions of edge-asr that do not know it read the bundle
        return data

    @classmethod
    def from_dict(cls, data: Any, where: str = MANIFEST_NAME) -> BundleInfo:
        """Read the JSON form.

        Args:
            data: decoded JSON.
            where: how the file is called in errors.

        Raises:
            BundleError: a missing or unknown key, a wrong type or value, another format.
        """
        version = data.get("format_version") if isinstance(data, Mapping) else FORMAT_VERSION
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise BundleError(
                f"{where}: format_version is {version!r}, this edge-asr reads {FORMAT_VERSION}; "
                "export the model again, or install the edge-asr that wrote it"
            )
        names: dict[str, type] = {}
        if isinstance(data, Mapping) and data.get("streaming") is not None:
            from edge_asr.stream_geometry import StreamingGeometry

            names["StreamingGeometry"] = StreamingGeometry
        remedy = "export the model again"
        return record_from_json(cls, data, where, error=BundleError, remedy=remedy, names=names)


def _check_file_name(name: str) -> None:
    if Path(name).name != name or name in ("", ".", ".."):
        raise BundleError(f"artifact file is {name!r}; it must be a plain name inside the bundle folder")
