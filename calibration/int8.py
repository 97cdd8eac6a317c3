"""Turns a float32 graph into INT8: smooth, collect ranges, choose groups, quantize, and check the budget.

This file only orders the steps; each step has its own file. Half of the speech of the calibration set gives
the ranges, and the other half measures the groups. The final check uses the manifests of the caller, if any,
else that other half. `Int8Result.failure` says whether a result failed.
What this file does not do: ship the result or write it into a bundle (pipeline.py, edge_asr.export).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edge_asr.audio import read_audio
from edge_asr.calibration.angles import shift_to_angles
from edge_asr.calibration.calibration_set import (
    CalibrationSet,
    embedded_calibration_set,
    select_calibration_set,
)
from edge_asr.calibration.forms import WHOLE_CLIPS, GraphForm
from edge_asr.calibration.int8_groups import GROUPS, Group
from edge_asr.calibration.measure import Int8Loss, MeasuredClip, Reference
from edge_asr.calibration.products import gemms_to_products
from edge_asr.calibration.quantizer import activation_tensors, quantize_model
from edge_asr.calibration.ranges import (
    DEFAULT_PERCENTILE,
    RangeMethod,
    collect_channel_amax,
    collect_statistics,
)
from edge_asr.calibration.sensitivity import Budget, Sensitivity, choose_groups
from edge_asr.calibration.smoothing import find_smoothable_tensors, smooth_model
from edge_asr.errors import AudioError, ConfigError, ManifestError
from edge_asr.feature_config import FeatureConfig
from edge_asr.frames import OutputFrames
from edge_asr.manifest import read_manifest
from edge_asr.proof.stages import StageProgress, Stages
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx

F32Array = npt.NDArray[np.float32]
logger = logging.getLogger(__name__)

TIMED_S = 10.0
#: The best of them depends on how much speech there is. Entropy never is best: it clips SiLU's tail.
AUTO_METHODS: tuple[RangeMethod, ...] = ("mse", "percentile", "minmax")


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Options:
    """How to quantize.

    Attributes:
        calibration: manifests to choose speech from; empty takes the embedded, synthesized one.
        evaluation: manifests whose every utterance the final check uses, none of those in `calibration`; if
            empty, half of the calibration speech.
        minutes: length of the calibration set; None is 10, or all that is embedded.
        seed: seed of its choice.
        range_method: how to choose a range from the values of a tensor; "auto" takes the method with the
            least divergence with every group in INT8.
        percentile: the percentile of the range method of that name.
        smoothing: SmoothQuant's alpha, 0 to 1; None does not move scales.
        budget: what may be lost.
    """

    calibration: tuple[Path, ...] = ()
    evaluation: tuple[Path, ...] = ()
    minutes: float | None = None
    seed: int = 0
    range_method: RangeMethod | Literal["auto"] = "auto"
    percentile: float = DEFAULT_PERCENTILE
    smoothing: float | None = 0.7
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        calibrated_on = {path.resolve() for path in self.calibration}
        for path in self.evaluation:
            if path.resolve() in calibrated_on:
                raise ConfigError(
                    f"{path} is given for calibration and evaluation; a loss on the same speech says little: "
                    "evaluate on other speech, or leave it out to use half of the calibration speech"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Result:
    """The INT8 graph, and everything that led to it.

    Attributes:
        model: the Q/DQ graph.
        float32_bytes: size of the graph that it was made from.
        options: how it was made.
        calibration: the set, `is_synthetic` included.
        calibrated_on, measured_on: names of its clips on either side.
        n_smoothed: tensors whose scales were moved.
        methods: divergence by range method, with every group in INT8; only one if the method was named.
        range_method: the one used.
        sensitivity: the groups, and the choice.
        evaluation: loss by manifest, and over all of them together under "pooled"; empty without manifests.
    """

    model: onnx.ModelProto
    float32_bytes: int
    options: Int8Options
    calibration: CalibrationSet
    calibrated_on: tuple[str, ...]
    measured_on: tuple[str, ...]
    n_smoothed: int
    methods: Mapping[RangeMethod, float]
    range_method: RangeMethod
    sensitivity: Sensitivity
    evaluation: Mapping[str, Int8Loss]

    @property
    def gate(self) -> Int8Loss:
        """Return the loss that the final check used."""
        return self.evaluation.get("pooled", self.sensitivity.chosen.loss)

    @property
    def failure(self) -> str | None:
        """Say in a sentence why it may not ship; None within the budget."""
        budget, chosen = self.options.budget, self.sensitivity.chosen
        over = budget.exceeded_by(chosen.loss, if_significant=True)
        if over is None and self.evaluation:
            over = budget.exceeded_by(self.gate)
        if over is None:
            return None
        return (
            f"INT8 of {', '.join(chosen.int8)} is over the budget: {over}; calibrate on speech closer to "
            "yours, try another range method, or allow more with --max-wer-loss or --min-agreement"
        )

    @property
    def time_ratio(self) -> float:
        """Return encoder time over float32's, on one thread of the machine that quantized."""
        return self.sensitivity.chosen.time_ratio

    def to_dict(self) -> dict[str, Any]:
        """Return what report.json holds under "int8": all but the graph."""
        options = {
            name: getattr(self.options, name) for name in ("minutes", "seed", "percentile", "smoothing")
        }
        return {
            **options,
            "failure": self.failure,
            "float32_bytes": self.float32_bytes,
            "calibration": self.calibration.to_dict(),
            "calibrated_on": list(self.calibrated_on),
            "measured_on": list(self.measured_on),
            "n_smoothed": self.n_smoothed,
            "range_method": self.range_method,
            "divergence_by_method": dict(self.methods),
            "int8_groups": list(self.sensitivity.chosen.int8),
            "sensitivity": dataclasses.asdict(self.sensitivity),
            "evaluation": {name: dataclasses.asdict(loss) for name, loss in self.evaluation.items()},
        }


def quantize_to_int8(
    model: onnx.ModelProto,
    features: FeatureConfig,
    vocabulary: Vocabulary,
    options: Int8Options,
    progress: StageProgress | None = None,
    *,
    output_frames: OutputFrames | None = None,
    chosen: CalibrationSet | None = None,
    form: GraphForm = WHOLE_CLIPS,
) -> Int8Result:
    """Quantize a float32 graph, within a budget if possible; check `failure` of the result.

    Args:
        model: a graph with the inputs and outputs of its form, its nodes named by edge-asr's exporter.
        features: front end of the model.
        vocabulary: the model's vocabulary.
        options: see `Int8Options`.
        progress: called as stages begin and advance.
        output_frames: how many output frames a clip gives; None takes all that the graph gives.
        chosen: from `choose_calibration_set`, if that was already called.
        form: whether the graph takes whole clips or is a stream.

    Raises:
        GateError: a value is not finite.
        ManifestError, AudioError, ConfigError: speech or options cannot be used.
        BundleError: the nodes of the graph have no names to choose by.
    """
    stages = Stages(progress)
    with stages.stage(f"{form.label}: choose speech"):
        chosen = chosen or choose_calibration_set(options, features.sample_rate)
        ranged, measured = _halve(chosen, features)
        feeds = form.feeds(model, [clip.features for clip in ranged])
    with stages.stage(f"{form.label}: smooth"):
        # A stream has its table of positions as a constant.
        angles = shift_to_angles(model) if form is WHOLE_CLIPS else model
        smoothed, n_smoothed = gemms_to_products(angles), 0
        if options.smoothing is not None:
            tensors = find_smoothable_tensors(smoothed)
            channel_amax = collect_channel_amax(smoothed, tensors, feeds)
            smoothed, sites = smooth_model(smoothed, channel_amax, options.smoothing)
            n_smoothed = len(sites)
    with stages.stage(f"{form.label}: collect ranges") as advance:
        statistics = collect_statistics(
            smoothed, activation_tensors(smoothed, GROUPS), feeds, progress=advance
        )
    with stages.stage(f"{form.label}: measure float32") as advance:
        reference = Reference(model, measured, vocabulary, output_frames, form)

    with stages.stage(f"{form.label}: choose a range method"):
        candidates = AUTO_METHODS if options.range_method == "auto" else (options.range_method,)
        ranges = {m: statistics.amax(m, percentile=options.percentile) for m in candidates}
        methods = {
            m: reference.measure(quantize_model(smoothed, a, GROUPS)).divergence for m, a in ranges.items()
        }
        method = min(methods, key=methods.__getitem__)

    def quantize(groups: Sequence[Group]) -> onnx.ModelProto:
        return quantize_model(smoothed, ranges[method], groups)

    judges: dict[str, Reference] = {}
    if options.evaluation:
        with stages.stage(f"{form.label}: measure float32 on the evaluation speech"):
            judges = _judges(model, options.evaluation, features, vocabulary, output_frames, form)
    evaluations: dict[tuple[Group, ...], dict[str, Int8Loss]] = {}

    def accept(groups: tuple[Group, ...]) -> bool:
        candidate = quantize(groups)
        losses = {name: judge.measure(candidate) for name, judge in judges.items()}
        evaluations[groups] = losses
        return not losses or options.budget.exceeded_by(losses["pooled"]) is None

    with stages.stage(f"{form.label}: choose groups") as advance:
        timed = _timed_clip(measured, features)
        sensitivity = choose_groups(
            model, quantize, reference, timed, TIMED_S, options.budget, advance, accept
        )
    chosen_groups = sensitivity.chosen.int8
    if chosen_groups not in evaluations:
        accept(chosen_groups)
    return Int8Result(
        model=quantize(chosen_groups),
        float32_bytes=model.ByteSize(),
        options=options,
        calibration=chosen,
        calibrated_on=tuple(clip.name for clip in ranged),
        measured_on=tuple(clip.name for clip in measured),
        n_smoothed=n_smoothed,
        methods=methods,
        range_method=method,
        sensitivity=sensitivity,
        evaluation=evaluations[chosen_groups],
    )


def choose_calibration_set(options: Int8Options, sample_rate: int) -> CalibrationSet:
    """Choose the calibration set of the options: from their manifests, or the embedded speech.

    Raises:
        ManifestError, AudioError, ConfigError: see `select_calibration_set`.
    """
    arguments: dict[str, Any] = {"seed": options.seed, "sample_rate": sample_rate}
    if not options.calibration:
        if options.minutes is not None:
            arguments["minutes"] = options.minutes
        return embedded_calibration_set(**arguments)
    return select_calibration_set(
        options.calibration, minutes=10.0 if options.minutes is None else options.minutes, **arguments
    )


def _halve(
    chosen: CalibrationSet, config: FeatureConfig
) -> tuple[tuple[MeasuredClip, ...], tuple[MeasuredClip, ...]]:
    """Take every other plain recording to measure; all else, silence and noise too, gives ranges."""
    ranged: list[MeasuredClip] = []
    measured: list[MeasuredClip] = []
    n_plain = 0
    for clip, features in zip(chosen.clips, chosen.features(config), strict=True):
        entry = MeasuredClip(name=clip.name, features=features, text=clip.text)
        is_plain = clip.kind == "speech" and clip.gain_db == 0
        n_plain += is_plain
        (measured if is_plain and n_plain % 2 == 0 else ranged).append(entry)
    if not measured:
        raise AudioError(
            "the calibration set holds a single recording, so none is left to measure the loss on; "
            "give a manifest with more speech"
        )
    return tuple(ranged), tuple(measured)


def _timed_clip(clips: Sequence[MeasuredClip], config: FeatureConfig) -> F32Array:
    """Lay speech end to end and cut it at ten seconds."""
    n_frames = round(TIMED_S * config.sample_rate / config.hop_length)
    speech = np.concatenate([clip.features for clip in clips])
    repeats = -(-n_frames // len(speech))
    return np.ascontiguousarray(np.tile(speech, (repeats, 1))[:n_frames])


def _judges(
    model: onnx.ModelProto,
    manifests: Sequence[Path],
    config: FeatureConfig,
    vocabulary: Vocabulary,
    output_frames: OutputFrames | None,
    form: GraphForm,
) -> dict[str, Reference]:
    """Run float32 over every manifest and, as "pooled", over all of them."""
    extractor = FeatureExtractor(config)
    clips: dict[str, list[MeasuredClip]] = {}
    for path in manifests:
        listed = read_manifest(path)
        if not listed.utterances:
            raise ManifestError(f"{path} has no usable utterance to evaluate on")
        if listed.bad_rows:
            logger.warning("%s: %d rows cannot be evaluated on", path, len(listed.bad_rows))
        name = path.stem if path.stem not in (*clips, "pooled") else str(path)
        clips[name] = [
            MeasuredClip(
                name=u.id, features=extractor(read_audio(u.audio_path, config.sample_rate)), text=u.text
            )
            for u in listed.utterances
        ]
    clips["pooled"] = [clip for some in clips.values() for clip in some]
    return {name: Reference(model, some, vocabulary, output_frames, form) for name, some in clips.items()}
