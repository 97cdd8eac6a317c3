"""From a float32 graph to INT8: which clips serve what, the gate, and the words of the embedded model.

The real-speech tests quantize tiny-en once, on clips of the train manifests, and look at the dev sets, which
nothing was chosen on; the file that ships is held to the same bars.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle
from edge_asr.calibration import sensitivity
from edge_asr.calibration.int8 import Int8Options, Int8Result, quantize_to_int8
from edge_asr.calibration.int8_groups import GROUPS
from edge_asr.calibration.measure import Int8Loss, MeasuredClip, Reference, run_clips, time_graphs
from edge_asr.calibration.sensitivity import Budget
from edge_asr.errors import AudioError, ConfigError
from edge_asr.graph.check import check_graph
from edge_asr.graph.weights import load_float32
from edge_asr.manifest import Utterance
from edge_asr.runtime.features.extractor import FeatureExtractor

F32Array = npt.NDArray[np.float32]
RECIPE_BUDGET = Budget(max_wer_loss=0.005, min_agreement=0.98)
ANYTHING = Budget(max_wer_loss=1.0, min_agreement=0.0)


@pytest.fixture(scope="module", autouse=True)
def few_timings() -> Iterator[None]:
    """One turn in place of fifteen: no choice here depends on the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "time_graphs", functools.partial(time_graphs, repeats=1))
        yield


@pytest.fixture(scope="module")
def small(random_bundle: Path) -> tuple[Bundle, onnx.ModelProto]:
    """Two random layers."""
    bundle = Bundle.load(random_bundle)
    return bundle, load_float32(bundle.artifact_path("fp32"))


def quantize(
    small: tuple[Bundle, onnx.ModelProto], options: Int8Options, seen: list[str] | None = None
) -> Int8Result:
    bundle, model = small

    def progress(stage: str, done: int, total: int) -> None:
        if seen is not None and not total:
            seen.append(stage)

    return quantize_to_int8(model, bundle.info.features, bundle.vocabulary, options, progress)


@pytest.fixture(scope="module")
def stages() -> list[str]:
    return []


@pytest.fixture(scope="module")
def small_result(
    small: tuple[Bundle, onnx.ModelProto],
    calibration_manifest: Path,
    evaluation_manifest: Path,
    stages: list[str],
) -> Int8Result:
    options = Int8Options(
        calibration=(calibration_manifest,),
        evaluation=(evaluation_manifest,),
        minutes=1,
        budget=ANYTHING,
    )
    return quantize(small, options, stages)


def test_every_group_is_int8_where_anything_goes(
    small_result: Int8Result, small: tuple[Bundle, onnx.ModelProto]
) -> None:
    assert small_result.sensitivity.chosen.int8 == GROUPS
    check_graph(small_result.model)
    assert small_result.model.ByteSize() == small_result.sensitivity.chosen.size_bytes
    assert small_result.time_ratio == small_result.sensitivity.chosen.time_ratio > 0
    bundle, model = small
    assert model == load_float32(bundle.artifact_path("fp32"))


def test_ranges_and_measures_are_of_different_clips(small_result: Int8Result) -> None:
    ranged, measured = set(small_result.calibrated_on), set(small_result.measured_on)
    clips = {clip.name: clip for clip in small_result.calibration.clips}
    assert ranged | measured == clips.keys()
    assert not ranged & measured
    assert {clips[name].kind for name in measured} == {"speech"}
    assert {"silence", "noise"} <= {clips[name].kind for name in ranged}
    plain = {name for name, clip in clips.items() if clip.kind == "speech" and clip.gain_db == 0}
    # The quiet and the clipped one are made of the same recordings.
    assert measured < plain
    assert len(measured) == len(plain) // 2
    assert not small_result.calibration.is_synthetic


def test_auto_takes_the_method_that_diverges_least(small_result: Int8Result) -> None:
    methods = small_result.methods
    assert set(methods) == {"mse", "percentile", "minmax"}
    assert methods[small_result.range_method] == min(methods.values()) > 0
    # With every group in INT8, which is the first step.
    assert small_result.sensitivity.steps[0].loss.divergence == pytest.approx(min(methods.values()))


def test_the_gate_looks_at_the_evaluation(small_result: Int8Result) -> None:
    assert list(small_result.evaluation) == ["dev", "pooled"]
    assert small_result.gate is small_result.evaluation["pooled"]
    assert small_result.gate == small_result.evaluation["dev"]
    assert small_result.gate.n_words == 4 * 2
    assert small_result.failure is None


def test_stages_are_announced_in_order(small_result: Int8Result, stages: list[str]) -> None:
    assert stages == [
        "int8: choose speech",
        "int8: smooth",
        "int8: collect ranges",
        "int8: measure float32",
        "int8: choose a range method",
        "int8: measure float32 on the evaluation speech",
        "int8: choose groups",
    ]


def test_json_form_holds_the_choice(small_result: Int8Result) -> None:
    data = json.loads(json.dumps(small_result.to_dict(), allow_nan=False))
    assert data["int8_groups"] == list(GROUPS)
    assert data["range_method"] == small_result.range_method
    assert data["calibration"]["sha256"] == small_result.calibration.sha256
    assert set(data["sensitivity"]["alone"]) == set(GROUPS)
    assert data["evaluation"]["pooled"]["agreement"] == small_result.gate.agreement
    assert data["n_smoothed"] == small_result.n_smoothed > 0
    assert "model" not in data


def test_manifests_of_one_name_are_all_evaluated(
    small: tuple[Bundle, onnx.ModelProto],
    calibration_manifest: Path,
    evaluation_manifest: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two files called dev.jsonl, and one called as the sum of all; a row that cannot be used is told."""
    rows = evaluation_manifest.read_text().splitlines()
    other = evaluation_manifest.parent / "other" / "dev.jsonl"
    other.parent.mkdir()
    other.write_text(rows[0].replace('"0.wav"', '"../0.wav"') + '\n{"text": "no sound"}\n')
    pooled = evaluation_manifest.with_name("pooled.jsonl")
    pooled.write_text(rows[1] + "\n")
    options = Int8Options(
        calibration=(calibration_manifest,),
        evaluation=(evaluation_manifest, other, pooled),
        minutes=1,
        range_method="minmax",
        budget=ANYTHING,
    )
    evaluation = quantize(small, options).evaluation
    assert list(evaluation) == ["dev", str(other), str(pooled), "pooled"]
    assert [loss.n_words for loss in evaluation.values()] == [8, 2, 2, 12]
    assert f"{other}: 1 rows cannot be evaluated on" in caplog.text


def test_speech_that_is_calibrated_on_is_not_evaluated_on(calibration_manifest: Path) -> None:
    indirect = calibration_manifest.parent / ".." / calibration_manifest.parent.name / "train.jsonl"
    with pytest.raises(ConfigError, match=r"train\.jsonl is given for calibration and evaluation"):
        Int8Options(calibration=(calibration_manifest,), evaluation=(indirect,))


def test_over_the_budget_says_so(small: tuple[Bundle, onnx.ModelProto], calibration_manifest: Path) -> None:
    """Ranges cut at the fifth percentile leave no group that keeps every frame."""
    options = Int8Options(
        calibration=(calibration_manifest,),
        minutes=1,
        range_method="percentile",
        percentile=5.0,
        smoothing=None,
        budget=Budget(max_wer_loss=1.0, min_agreement=1.0),
    )
    failure = quantize(small, options).failure
    assert failure is not None
    assert re.match(r"INT8 of \w+ is over the budget: .* at least 100\.00 % required", failure)


def test_a_single_recording_is_not_enough(
    small: tuple[Bundle, onnx.ModelProto], calibration_manifest: Path, tmp_path: Path
) -> None:
    row = json.loads(calibration_manifest.read_text().splitlines()[0])
    row["audio_filepath"] = str(calibration_manifest.parent / row["audio_filepath"])
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(AudioError, match="a single recording"):
        quantize(small, Int8Options(calibration=(path,), minutes=1))


# tiny-en on real speech


def measured(utterances: tuple[Utterance, ...], extractor: FeatureExtractor) -> list[MeasuredClip]:
    return [
        MeasuredClip(name=u.id, features=extractor(read_audio(u.audio_path)), text=u.text) for u in utterances
    ]


@pytest.fixture(scope="module")
def extractor(tiny_en_bundle: Bundle) -> FeatureExtractor:
    return FeatureExtractor(tiny_en_bundle.info.features)


@pytest.fixture(scope="module")
def references(
    tiny_en_bundle: Bundle,
    tiny_en: onnx.ModelProto,
    extractor: FeatureExtractor,
    an4_dev: tuple[Utterance, ...],
    librispeech_dev: tuple[Utterance, ...],
) -> dict[str, Reference]:
    """float32 over each dev set, both, and long clips joined of them."""
    an4, libri = measured(an4_dev, extractor), measured(librispeech_dev, extractor)
    sets = {
        "an4": an4,
        "librispeech": libri,
        "pooled": an4 + libri,
        "long": join(an4_dev, extractor, (36.0, 48.0, 60.0)) + join(librispeech_dev, extractor, (36.0, 60.0)),
    }
    return {name: Reference(tiny_en, clips, tiny_en_bundle.vocabulary) for name, clips in sets.items()}


def join(
    utterances: tuple[Utterance, ...], extractor: FeatureExtractor, lengths_s: tuple[float, ...]
) -> list[MeasuredClip]:
    """Clips of no more than these lengths and at least 0.7 of them: utterances end to end, 0.2 s between."""
    clips, rest = [], list(utterances)
    for length_s in lengths_s:
        waveforms: list[F32Array] = []
        texts: list[str] = []
        n_samples = 0
        while rest:
            waveform = read_audio(rest[0].audio_path)
            if n_samples + len(waveform) > length_s * 16_000:
                break
            waveforms += [waveform, np.zeros(3200, np.float32)]
            texts.append(rest.pop(0).text)
            n_samples += len(waveform) + 3200
        assert n_samples >= 0.7 * length_s * 16_000, "not enough speech for a long clip"
        clips.append(
            MeasuredClip(
                name=f"{length_s:g} s", features=extractor(np.concatenate(waveforms)), text=" ".join(texts)
            )
        )
    return clips


@pytest.fixture(scope="module")
def real_result(tiny_en_bundle: Bundle, tiny_en: onnx.ModelProto, shared_dir: Path) -> Int8Result:
    """tiny-en, quantized on five minutes of the train manifests, within the budget of its recipe."""
    data = shared_dir / "data"
    options = Int8Options(
        calibration=(data / "an4_train.jsonl", data / "librispeech_train.jsonl"),
        minutes=5,
        range_method="mse",
        budget=RECIPE_BUDGET,
    )
    return quantize((tiny_en_bundle, tiny_en), options)


@pytest.fixture(scope="module", params=["quantized here", "shipped"])
def int8_model(request: pytest.FixtureRequest, tiny_en_bundle: Bundle) -> onnx.ModelProto:
    """tiny-en in INT8."""
    if request.param == "shipped":
        return onnx.load(tiny_en_bundle.artifact_path("int8"))
    result: Int8Result = request.getfixturevalue("real_result")
    return result.model


@pytest.mark.slow
def test_the_words_stay_on_the_dev_sets(
    int8_model: onnx.ModelProto, references: dict[str, Reference]
) -> None:
    """About the budget of the embedded model; on 1100 words, 0.3 points are three words."""
    losses: dict[str, Int8Loss] = {
        name: references[name].measure(int8_model) for name in ("an4", "librispeech", "pooled")
    }
    assert losses["pooled"].wer_loss <= 0.006, losses  # type: ignore[operator]
    assert losses["an4"].wer_loss <= 0.012, losses  # type: ignore[operator]
    assert losses["librispeech"].wer_loss <= 0.012, losses  # type: ignore[operator]
    assert losses["pooled"].agreement >= 0.98, losses
    assert losses["pooled"].n_words == losses["an4"].n_words + losses["librispeech"].n_words > 900
    # float32 hears these sets: equal rubbish would prove nothing.
    assert losses["pooled"].wer_reference < 0.4, losses  # type: ignore[operator]


@pytest.mark.slow
def test_the_file_is_small(int8_model: onnx.ModelProto, tiny_en: onnx.ModelProto) -> None:
    assert int8_model.ByteSize() <= 0.32 * tiny_en.ByteSize()


@pytest.mark.slow
def test_no_collapse_on_long_clips(
    int8_model: onnx.ModelProto,
    references: dict[str, Reference],
) -> None:
    """25 to 60 s, longer than any clip of the calibration: attention over 1500 frames, sums that grow."""
    reference = references["long"]
    seconds = [len(clip.features) / 100 for clip in reference.clips]
    assert min(seconds) >= 25
    assert 50 <= max(seconds) <= 60
    for clip, float32 in zip(reference.clips, reference.outputs, strict=True):
        (found,) = run_clips(int8_model, [clip])
        agreement = (found.argmax(axis=1) == float32.argmax(axis=1)).mean()
        assert agreement >= 0.95, (clip.name, agreement)
    loss = reference.measure(int8_model)
    assert loss.wer_loss <= 0.02, loss  # type: ignore[operator]


@pytest.mark.slow
def test_the_choice_follows_the_rule_from_what_is_reported(real_result: Int8Result) -> None:
    found = real_result.sensitivity
    assert found.budget == RECIPE_BUDGET
    costs = {g: c.loss.divergence / found.multiply_adds[g] for g, c in found.alone.items()}
    left = list(found.alone)
    for step in found.steps:
        assert list(step.int8) == left
        left.remove(max(left, key=costs.__getitem__))
    assert found.budget.exceeded_by(real_result.gate, if_significant=True) is None
