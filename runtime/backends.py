"""Inference backends: features in, CTC log-probs out, behind one small protocol.

`choose_backend` is the seam: it picks the artifact of a bundle and the library that runs it. If a backend is
named and not available, the error says why. Only "auto" chooses by itself: an engine that fits this device,
else onnxruntime on CUDA, else the CPU, and it says why.
What this file does not do: features, decoding, batching policy, onnxruntime itself (onnxruntime_backend.py)
and TensorRT itself (engine/backend.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.bundle.names import ENGINES_FOLDER
from edge_asr.errors import BackendError, EngineError, MissingDependencyError
from edge_asr.runtime.onnxruntime_backend import open_artifact

if TYPE_CHECKING:
    from edge_asr.runtime.engine.sidecar import Flavor

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "cuda", "cpu")

# The order in which "auto" tries precisions. CPUs compute fp16 graphs in float32, so fp16 comes last there.
_PREFERENCE: dict[str, tuple[Precision, ...]] = {
    "cpu": ("int8", "fp32", "fp16"),
    "cuda": ("fp16", "fp32", "int8"),
    "tensorrt": ("fp16", "int8", "fp32"),
}
ENGINE_PRECISIONS = _PREFERENCE["tensorrt"]
_FLAVORS: dict[str, Flavor] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}


class Backend(Protocol):
    """Runs one model. Safe to call from several threads unless an implementation says otherwise."""

    @property
    def name(self) -> str:
        """Short name, one of `BACKENDS` except "auto"."""
        ...

    @property
    def precision(self) -> str:
        """Precision of the artifact that it runs: "fp32", "fp16" or "int8"."""
        ...

    @property
    def num_threads(self) -> int | None:
        """Threads of one run; None if the backend does not say, or does not use them."""
        ...

    @property
    def max_frames(self) -> int | None:
        """Most feature frames of one row; None if there is no limit."""
        ...

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> F32Array:
        """Compute CTC log-probs of a padded batch.

        Args:
            features: [B, T, n_mels] float32.
            feature_lens: [B] int64, valid frames of each row.

        Returns:
            [B, T', V] float32; in row b the first ceil(feature_lens[b] / subsampling_factor)
            frames are valid.

        Raises:
            BackendError: the run failed.
        """
        ...

    def close(self) -> None:
        """Release memory and devices. May be called twice."""
        ...


@runtime_checkable
class EncodingBackend(Protocol):
    """A `Backend` that can also give what an attention decoder attends to."""

    def encode(self, features: F32Array, feature_lens: I64Array) -> tuple[F32Array, F32Array]:
        """Compute CTC log-probs of a padded batch, and the frames of the encoder, float32 [B, T', D].

        Args, and what is raised: as `Backend.log_probs`; a BackendError too if the model lacks that output.
        """
        ...


def check_encoded(encoded: npt.NDArray[Any], shape: tuple[int, int], n_valid: Sequence[int]) -> None:
    """Refuse frames of the encoder as `check_log_probs` refuses log-probs.

    Args:
        encoded: output of the model for a batch.
        shape: [B, T'] that the bundle describes for this batch.
        n_valid: valid frames of each row.

    Raises:
        BackendError: the dtype or shape is wrong, or a valid frame is not finite.
    """
    if encoded.dtype != np.float32 or encoded.ndim != 3 or encoded.shape[:2] != shape:
        raise BackendError(
            f"the encoder gave {encoded.dtype} {list(encoded.shape)}, its bundle describes float32 "
            f"{list(shape)} (batch, frames) and a width; export the model again"
        )
    if not all(np.isfinite(row[:n].sum()) for row, n in zip(encoded, n_valid, strict=True)):
        raise BackendError(
            "the encoder gave NaN or infinity; use precision='fp32', or export the model again"
        )


def check_log_probs(log_probs: npt.NDArray[Any], shape: tuple[int, int, int], n_valid: Sequence[int]) -> None:
    """Refuse an output that differs from what the bundle describes, because it would still become text.

    Args:
        log_probs: output of the model for a batch.
        shape: [B, T', V] that the bundle describes for this batch.
        n_valid: valid frames of each row; later frames may hold anything.

    Raises:
        BackendError: the dtype or shape is wrong, or a valid frame holds NaN.
    """
    if log_probs.dtype != np.float32 or log_probs.shape != shape:
        raise BackendError(
            f"the model gave {log_probs.dtype} {list(log_probs.shape)}, its bundle describes float32 "
            f"{list(shape)} (batch, frames, tokens); the file is not this bundle's model: export it again"
        )
    for row, n_frames in zip(log_probs, n_valid, strict=True):
        if np.isnan(row[:n_frames].sum()):  # a sum is NaN only if the row holds NaN
            raise BackendError(
                "the model gave NaN instead of log-probs; use precision='fp32', or export the model again"
            )


def choose_precision(bundle: Bundle, precision: str, device: str) -> Precision:
    """Choose the artifact to run: `precision` itself, or for "auto" the best one for `device`.

    On the CPU "auto" skips an artifact that was measured to be no faster than fp32. FP16 engines ("tensorrt")
    are made from fp32's file.

    Raises:
        BundleError: the bundle lacks the precision.
        BackendError: the precision is unknown.
    """
    if precision != "auto":
        for known in ("fp32", "fp16", "int8"):
            if precision == known:
                (bundle.artifact_behind if device == "tensorrt" else bundle.artifact)(known)
                return known
        raise BackendError(f"precision {precision!r} is unknown; use auto, fp32, fp16 or int8")
    artifacts = {artifact.precision: artifact for artifact in bundle.info.artifacts}
    ordered = [artifacts[p] for p in _PREFERENCE[device] if p in artifacts]
    for artifact in ordered:
        ratio = artifact.cpu_time_over_fp32
        if device == "cpu" and artifact.precision != "fp32" and ratio is not None and ratio >= 1:
            logger.info("auto precision: not %s, its time is %.2f of fp32's", artifact.precision, ratio)
            continue
        return artifact.precision
    return ordered[0].precision


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """A backend and how it was chosen.

    Attributes:
        backend: runs the model.
        reason: why it was chosen, for people; for "auto" also why the ones before it were not.
    """

    backend: Backend
    reason: str


def choose_backend(
    bundle: Bundle,
    *,
    precision: str = "auto",
    backend: str = "auto",
    num_threads: int | None = None,
    allow_unverified: bool = False,
    min_frames: int = 1,
) -> BackendChoice:
    """Choose the backend that runs `bundle`, and say why.

    Args:
        bundle: a loaded bundle.
        precision: "auto", "fp32", "fp16" or "int8". On a CPU "auto" prefers int8, then fp32; on CUDA fp16,
            then fp32; of engines fp16, then int8, then fp32.
        backend: "tensorrt", "tensorrt-rtx", "cuda", "cpu", or "auto": a TensorRT engine in the bundle that
            was built and proven for this device, else CUDA if onnxruntime can start it, else the CPU.
        num_threads: see `OnnxRuntimeBackend`; TensorRT does not use it.
        allow_unverified: also accept engines that were not proven; proven ones come first.
        min_frames: feature frames that one row must be able to hold; an engine that takes fewer is refused.

    Raises:
        MissingDependencyError: the library of a named backend, or onnxruntime, is not installed.
        EngineError: TensorRT was named and no engine may run here.
        BackendError: a named backend is not available here, or the name is unknown.
        BundleError: the bundle lacks the precision.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")

    def create(name: str) -> BackendChoice:
        if name in _FLAVORS:
            flavor = _FLAVORS[name]
            return _create_tensorrt(bundle, precision, flavor, allow_unverified, min_frames)
        return _create_onnxruntime(bundle, precision, name, num_threads)

    if backend != "auto":
        choice = create(backend)
        logger.info("backend: %s", choice.reason)
        return choice
    passed_over: list[str] = []
    for name in ("tensorrt", "cuda", "cpu"):
        try:
            if name == "tensorrt" and not _has_engine(bundle, "tensorrt"):
                raise EngineError("the bundle has no engine for it")  # this path imports nothing
            choice = create(name)
        except (BackendError, MissingDependencyError) as error:
            if name == "cpu":
                raise
            passed_over.append(f"not {name}: {error}")
            continue
        reason = "; ".join([f"auto chose {choice.reason}", *passed_over])
        logger.info("backend: %s", reason)
        return BackendChoice(backend=choice.backend, reason=reason)
    raise AssertionError("the CPU either returns or raises")


def create_backend(
    bundle: Bundle,
    *,
    precision: str = "auto",
    backend: str = "auto",
    num_threads: int | None = None,
    allow_unverified: bool = False,
) -> Backend:
    """Return the backend of `choose_backend`, with its arguments and errors."""
    return choose_backend(
        bundle,
        precision=precision,
        backend=backend,
        num_threads=num_threads,
        allow_unverified=allow_unverified,
    ).backend


def _has_engine(bundle: Bundle, flavor: Flavor) -> bool:
    if not (bundle.path / ENGINES_FOLDER).is_dir():
        return False  # the usual case on a CPU; the code of engines is not even imported
    from edge_asr.runtime.engine.lookup import has_engine

    return has_engine(bundle, flavor)


def _create_onnxruntime(
    bundle: Bundle, precision: str, device: str, num_threads: int | None
) -> BackendChoice:
    chosen = choose_precision(bundle, precision, device)
    runner = open_artifact(bundle, bundle.artifact(chosen), device=device, num_threads=num_threads)
    return BackendChoice(backend=runner, reason=f"{device}, {chosen}, {runner.num_threads} threads")


def _create_tensorrt(
    bundle: Bundle, precision: str, flavor: Flavor, allow_unverified: bool, min_frames: int
) -> BackendChoice:
    """Create the first engine that may run here, of a named precision or by preference, proven ones first.

    Raises:
        EngineError: no engine may run; the message gives the first reason.
    """
    from edge_asr.runtime.engine.backend import TensorRTBackend
    from edge_asr.runtime.engine.lookup import build_command, has_engine

    best = choose_precision(bundle, precision, "tensorrt")
    have = {artifact.precision for artifact in bundle.info.artifacts}
    if "fp32" in have:
        have.add("fp16")  # which engines make from it
    candidates = [best]
    if precision == "auto":
        built = [p for p in _PREFERENCE["tensorrt"] if p in have and has_engine(bundle, flavor, p)]
        candidates = built or [best]
    errors: list[EngineError] = []
    for unproven_too in (False, True) if allow_unverified else (False,):
        errors.clear()
        for candidate in candidates:
            try:
                runner = TensorRTBackend(bundle, candidate, flavor=flavor, allow_unverified=unproven_too)
            except EngineError as error:
                errors.append(error)
                continue
            if runner.max_frames < min_frames:
                runner.close()
                errors.append(
                    EngineError(
                        f"the engine {runner.plan_path} takes at most {runner.max_frames} feature frames, "
                        f"{min_frames} are needed; build it with longer --profile-seconds: "
                        f"{build_command(bundle, candidate, flavor, force=True)}"
                    )
                )
                continue
            reason = f"{flavor}, {candidate}, {runner.plan_path.relative_to(bundle.path)}"
            return BackendChoice(backend=runner, reason=reason)
    raise errors[0]
