"""Renders the part of a report about INT8: tables that explain the choice, and a short summary.

Both are rendered from what report.json holds under "int8" (`Int8Result.to_dict` of edge_asr.calibration).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edge_asr.bundle.names import PLOT_NAME
from edge_asr.markdown import markdown_table

Record = Mapping[str, Any]
_CANDIDATE = ("divergence", "frames agreeing", "WER loss, points", "size", "time")


def int8_summary_lines(int8: Record, *, stream: bool = False) -> list[str]:
    """Summarize what INT8 costs and gains in a few lines, and in one for the stream."""
    loss, chosen = _gate(int8), _chosen(int8)
    if stream:
        wer = f"{_wer_words(loss)}, " if _has_wer(loss) else ""
        return [
            f"INT8, streaming: {wer}{loss['agreement']:.2%} of the frames keep their most likely token; time "
            f"{chosen['time_ratio']:.2f} of float32's on one thread here"
        ]
    lines = []
    if int8["calibration"]["is_synthetic"]:
        lines.append(
            "INT8: calibrated on the embedded, synthetic speech; --calibration with your own is better"
        )
    float_groups = [group for group in int8["sensitivity"]["alone"] if group not in chosen["int8"]]
    lines.append(f"INT8: {', '.join(chosen['int8'])}; float32: {', '.join(float_groups) or 'none'}")
    if _has_wer(loss):
        lines.append(f"INT8: {_wer_words(loss)}")
    speed = f"encoder time {chosen['time_ratio']:.2f} of float32's on one thread here"
    if chosen["time_ratio"] >= 1:
        speed += ": slower, so --precision auto passes it over"
    return [*lines, f"INT8: {loss['agreement']:.2%} of the frames keep their most likely token; {speed}"]


def int8_decoder_line(found: Record) -> str:
    """Say in a few sentences what INT8 makes of an attention decoder (`Int8Decoder.to_dict`)."""
    loss, refusal = found["loss"], found["refusal"]
    sentences = [] if refusal is None else [f"{refusal[0].upper()}{refusal[1:]}."]
    if loss is not None:
        sentences.append(
            f"Rescoring of {loss['n_clips']} clips: {_wer_words(loss)}; {loss['same_texts']:.2%} of the "
            f"texts are the same; the decoder's time is {loss['time_ratio']:.2f} of float32's on one thread "
            f"here, its size {loss['size_bytes'] / loss['float32_bytes']:.2f} of it."
        )
    return " ".join(sentences)


def int8_blocks(int8: Record, *, stream: bool = False) -> Iterator[str | list[str]]:
    """Yield the blocks of the section of the graph or the stream, with its heading of the first level."""
    found, chosen = int8["sensitivity"], _chosen(int8)
    float32_bytes, budget = int8["float32_bytes"], found["budget"]
    is_slower = chosen["time_ratio"] >= 1
    yield "# INT8, streaming" if stream else "# INT8"
    yield (
        f"In INT8: {', '.join(chosen['int8'])}. {chosen['size_bytes'] / 1e6:.2f} MB, "
        f"{chosen['size_bytes'] / float32_bytes:.1%} of float32; encoder time {chosen['time_ratio']:.2f} of "
        f"float32's ({found['clip_s']:g} s of speech, one thread, this machine's onnxruntime)."
        + (
            f" **Slower than float32 here{'' if stream else ': `--precision auto` passes it over'}.**"
            if is_slower
            else ""
        )
    )
    if int8["failure"] is not None:
        yield f"**Failed: {int8['failure']}.**"
    yield f"{_ranges(int8)} {_speech(int8)}"
    yield (
        f"Allowed: a WER loss of {100 * budget['max_wer_loss']:g} points and a change of the most likely "
        f"token in {1 - budget['min_agreement']:.2%} of the frames. The choice aims at four fifths of these "
        "frames; there a WER loss counts when its 95 % interval is above 0."
    )
    yield _evaluation(int8["evaluation"])
    yield "## The choice"
    refused = any(step.get("refused") for step in found["steps"])
    yield (
        "From the top, each row gives one more group back to float32, the one with the most divergence per "
        "multiply-add (next table); the row in bold is the choice."
        + (" Rows that end in * were over the budget on the evaluation speech." if refused else "")
    )
    yield markdown_table(
        ("in INT8", *_CANDIDATE),
        [
            _candidate_row(
                ", ".join(step["int8"]) + " *" * bool(step.get("refused")),
                step,
                float32_bytes,
                bold=step is chosen,
            )
            for step in found["steps"]
        ],
    )
    yield "## Each group alone in INT8"
    yield markdown_table(
        ("group", *_CANDIDATE, "multiply-adds", "divergence per 1e9"),
        [
            (*_candidate_row(group, one, float32_bytes), *_work(found["multiply_adds"][group], one))
            for group, one in found["alone"].items()
        ],
    )
    yield (
        "Divergence is the mean Kullback-Leibler divergence from float32, nats a frame, over "
        f"{len(int8['measured_on'])} clips ({chosen['loss']['n_frames']} frames, {chosen['loss']['n_words']} "
        "words) outside the calibration. Times are noisy to a few percent."
    )
    if not stream:
        yield f"![Loss against time and size]({PLOT_NAME})"


def _chosen(int8: Record) -> Record:
    """Find the step whose groups were taken."""
    steps: list[Record] = int8["sensitivity"]["steps"]
    return next(step for step in steps if list(step["int8"]) == list(int8["int8_groups"]))


def _gate(int8: Record) -> Record:
    """Find the loss that the final check used."""
    loss: Record = int8["evaluation"].get("pooled", _chosen(int8)["loss"])
    return loss


def _ranges(int8: Record) -> str:
    method = int8["range_method"]
    shown = f"percentile {int8['percentile']:g}" if method == "percentile" else method
    others = ", ".join(f"{name} {value:.5f}" for name, value in int8["divergence_by_method"].items())
    alpha = int8["smoothing"]
    smoothing = "off" if alpha is None else f"alpha {alpha:g}, {int8['n_smoothed']} tensors"
    return f"Ranges: {shown} (divergence with every group in INT8: {others}). Smoothing: {smoothing}."


def _speech(int8: Record) -> str:
    chosen = int8["calibration"]
    speech = (
        "the embedded, synthetic speech (your own microphone's recordings are better)"
        if chosen["is_synthetic"]
        else ", ".join(manifest["name"] for manifest in chosen["manifests"])
    )
    shortfall = f" {chosen['shortfall']}." if chosen["shortfall"] else ""
    return (
        f"Calibrated on {len(int8['calibrated_on'])} clips, measured on {len(int8['measured_on'])}, together "
        f"{chosen['minutes']:.1f} minutes of {speech}; set {chosen['sha256'][:12]}.{shortfall}"
    )


def _evaluation(losses: Record) -> str | list[str]:
    if not losses:
        return "The gate looked at the measured clips; no manifest to evaluate on was given."
    columns = ("evaluated on", "float32 WER", "INT8 WER", "loss, points (95 % interval)", "frames agreeing")
    return markdown_table(columns, [(name, *_loss_cells(loss)) for name, loss in losses.items()])


def _loss_cells(loss: Record) -> tuple[str, ...]:
    agreement = f"{loss['agreement']:.2%}"
    if not _has_wer(loss):
        return "-", "-", "-", agreement
    wers = f"{loss['wer_reference']:.2%}", f"{loss['wer_candidate']:.2%}"
    return *wers, f"{_points(_wer_loss(loss))} ({_interval(loss)})", agreement


def _has_wer(loss: Record) -> bool:
    return loss["wer_reference"] is not None


def _wer_loss(loss: Record) -> float:
    difference: float = loss["wer_candidate"] - loss["wer_reference"]
    return difference


def _wer_words(loss: Record) -> str:
    return (
        f"WER {loss['wer_reference']:.2%} -> {loss['wer_candidate']:.2%}, loss {_points(_wer_loss(loss))} "
        f"points ({_interval(loss)}) on {loss['n_words']} words"
    )


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.2f}"


def _interval(loss: Record) -> str:
    return f"{_points(loss['wer_loss_low'])} to {_points(loss['wer_loss_high'])}"


def _candidate_row(
    label: str, candidate: Record, float32_bytes: int, *, bold: bool = False
) -> tuple[str, ...]:
    loss = candidate["loss"]
    cells = (
        label,
        f"{loss['divergence']:.5f}",
        f"{loss['agreement']:.2%}",
        _points(_wer_loss(loss)) if _has_wer(loss) else "-",
        f"{candidate['size_bytes'] / float32_bytes:.1%}",
        f"{candidate['time_ratio']:.2f}",
    )
    return tuple(f"**{cell}**" for cell in cells) if bold else cells


def _work(multiply_adds: int, candidate: Record) -> tuple[str, str]:
    per_billion = 1e9 * candidate["loss"]["divergence"] / max(multiply_adds, 1)
    return f"{multiply_adds / 1e6:.1f} M", f"{per_billion:.2g}"
