"""Ratios of invented samples whose truth is known: the same, doubled, and noise alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from edge_asr.benchmark.compare import compare, find_differences, ratio_of_medians
from edge_asr.benchmark.schema import Accuracy, BenchReport, Times
from edge_asr.errors import ConfigError

MakeReport = Callable[..., BenchReport]


def test_the_same_is_within_noise_everywhere(report: BenchReport) -> None:
    found = compare(report, report)
    assert (
        len(found.ratios) == 4 * 5 + 7 + 1
    )  # four stages and the processor of four cells, cold start, one of the streams'
    assert {ratio.verdict for ratio in found.ratios} == {"within noise"}
    assert {ratio.ratio for ratio in found.ratios} == {1.0}
    assert found.differences == found.only_one == found.error_rates == ()


def test_doubled_times_are_slower_and_halved_ones_faster(make_report: MakeReport) -> None:
    slow, fast = make_report(scale=2.0, seed=1), make_report(seed=2)
    for a, b, expected, verdict in ((fast, slow, 2.0, "slower"), (slow, fast, 0.5, "faster")):
        for ratio in compare(a, b).ratios:
            assert ratio.verdict == verdict
            assert ratio.ratio == pytest.approx(expected, rel=0.05)
            assert ratio.low < ratio.ratio < ratio.high


def test_noise_of_a_fifth_hides_a_difference_of_a_hundredth() -> None:
    rng = np.random.default_rng(3)
    a, b = 10 + 2 * rng.standard_normal(60), 10.1 + 2 * rng.standard_normal(60)
    assert ratio_of_medians("x", Times.of(a.tolist()), Times.of(b.tolist())).verdict == "within noise"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    # 200 pairs of equal distributions, one session: 95 % of the intervals should hold 1. Nine in ten is the
    # bar: the bootstrap of a median is a little too narrow at 40 samples.
    rng = np.random.default_rng(4)
    verdicts = [
        ratio_of_medians(
            "x", Times.of(rng.gamma(20, 1, 40).tolist()), Times.of(rng.gamma(20, 1, 40).tolist())
        ).verdict
        for _ in range(200)
    ]
    assert verdicts.count("within noise") >= 180


def test_a_machine_that_drifts_between_sessions_is_noise_however_steady_it_runs_within_them() -> None:
    rng = np.random.default_rng(5)

    def sessions(levels: list[float]) -> Times:
        return Times.of(
            (np.repeat(levels, 8) * (1 + 0.001 * rng.standard_normal(40))).tolist(), sessions=[8] * 5
        )

    a, b = sessions([10, 10, 14, 10, 10]), sessions([11, 12, 12, 12, 12])
    found = ratio_of_medians("x", a, b)
    assert found.verdict == "within noise"
    assert (found.low, found.high) == pytest.approx((11 / 14, 12 / 10), rel=0.01)
    assert ratio_of_medians("x", a, sessions([15, 16, 15, 18, 15])).verdict == "slower"


def test_too_few_runs_give_no_verdict() -> None:
    assert ratio_of_medians("x", Times.of([1.0] * 4), Times.of([2.0] * 40)).verdict == "too few runs"


def test_a_busy_machine_is_said(report: BenchReport, replace_machine: Callable[..., BenchReport]) -> None:
    found = compare(report, replace_machine(report, load_before=1.5))
    assert found.differences == ("B was measured beside other work: load average 1.5 on 2 processors",)


def test_another_machine_is_said(report: BenchReport, replace_machine: Callable[..., BenchReport]) -> None:
    other = replace_machine(report, cpu="Other CPU", packages={"numpy": "1.26"})
    found = compare(report, other)
    assert [d for d in found.differences if d.startswith("machine.cpu:")] == [
        "machine.cpu: 'Invented CPU' in A, 'Other CPU' in B"
    ]
    assert any(d.startswith("machine.packages") for d in found.differences)


def test_another_text_and_another_file_are_said(report: BenchReport) -> None:
    (configuration,) = report.configurations
    cells = tuple(dataclasses.replace(c, text_sha256="00" * 32) for c in configuration.cells[:1])
    changed = dataclasses.replace(
        configuration, sha256="99" * 32, threads=4, cells=cells + configuration.cells[1:]
    )
    other = dataclasses.replace(report, configurations=(changed,))
    found = list(find_differences(report, other))
    assert found == [
        f"int8 on cpu: sha256: {'cd' * 6!r} in A, {'99' * 6!r} in B",
        "int8 on cpu: threads: 1 in A, 4 in B",
        "int8 on cpu: the recognized text differs at 1 s x 1",
    ]


def test_other_audio_is_refused(report: BenchReport) -> None:
    audio = dataclasses.replace(report.audio, sha256="00" * 32)
    with pytest.raises(ConfigError, match="the same --audio"):
        compare(report, dataclasses.replace(report, audio=audio))


def test_nothing_in_common_is_refused_and_the_rest_is_named(report: BenchReport) -> None:
    (configuration,) = report.configurations
    fp32 = dataclasses.replace(configuration, precision="fp32")
    with pytest.raises(ConfigError, match="nothing in common"):
        compare(report, dataclasses.replace(report, configurations=(fp32,)))
    fewer = dataclasses.replace(configuration, cells=configuration.cells[:1])
    found = compare(report, dataclasses.replace(report, configurations=(fewer,)))
    assert "int8 on cpu, 5 s, batch 4: total" in found.only_one
    assert not any("5 s" in ratio.what for ratio in found.ratios)


def test_error_rates_stand_side_by_side_only_for_the_same_manifest(report: BenchReport) -> None:
    def with_rates(wer: float, sha256: str) -> BenchReport:
        rates = Accuracy(
            manifest="dev",
            manifest_sha256=sha256,
            normalization="none",
            n_utterances=2,
            n_words=10,
            audio_s=5.0,
            wer=wer,
            cer=wer,
            rtfx=10.0,
        )
        (configuration,) = report.configurations
        changed = dataclasses.replace(configuration, accuracy=rates, accuracy_reason=None)
        return dataclasses.replace(report, configurations=(changed,))

    same = compare(with_rates(0.1, "aa" * 32), with_rates(0.2, "aa" * 32)).error_rates
    assert [(a, b) for _, a, b in same] == [(0.1, 0.2)]
    assert compare(with_rates(0.1, "aa" * 32), with_rates(0.2, "bb" * 32)).error_rates == ()
