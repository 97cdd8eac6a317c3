"""How many output frames a clip of n input frames gives: one rule of two numbers for every model.

Every stack of convolutions, padded or not, gives floor((n - first) / factor) + 1 frames: `factor` is the
product of its strides, `first` the input frames that the first output frame asks for. NeMo's padded stacks
have first 1, so ceil(n / factor); ESPnet's unpadded ones 7 (by 4); wav2vec 2.0's 400 samples (by 320);
NeMo's causal ones ask for less than they have padding: -6 (by 8).

An exported graph always gives at least ceil(n / factor) frames, for other runtimes count so (sherpa-onnx
reads past a shorter output); what lies behind `n_valid` means nothing. This file has integers only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge_asr.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFrames:
    """The rule of one model.

    Attributes:
        factor: input frames per output frame.
        first: input frames that the first output frame asks for; 0 and below where padding alone would do.

    Raises:
        ConfigError: a factor below 1, or a number that is not whole.
    """

    factor: int
    first: int = 1

    def __post_init__(self) -> None:
        for name in ("factor", "first"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name} of the output frames is {value!r}; give a whole number.")
        if self.factor < 1:
            raise ConfigError(f"factor of the output frames is {self.factor}; give 1 or more.")

    @classmethod
    def from_convolutions(cls, stages: Iterable[tuple[int, int, int]]) -> OutputFrames:
        """The rule of convolutions one after the other, each (kernel, stride, padding of both ends)."""
        factor, first = 1, 1
        for kernel, stride, padding in stages:
            # Output i of a stage reads its inputs up to i * stride + kernel - padding - 1.
            first += factor * (kernel - padding - 1)
            factor *= stride
        return cls(factor=factor, first=first)

    @classmethod
    def of(cls, rule: OutputFrames | int) -> OutputFrames:
        """A rule as it is; a bare factor as ceil(n / factor)."""
        return cls(factor=rule) if isinstance(rule, int) else rule

    def n_valid(self, n_frames: int) -> int:
        """Output frames of a clip of `n_frames`; a clip without frames has none."""
        return max((n_frames - self.first) // self.factor + 1, 0) if n_frames > 0 else 0

    def n_graph(self, n_frames: int) -> int:
        """Time axis of the graph's output for a time axis of `n_frames` >= 1 at its input."""
        return max(self.n_valid(n_frames), -(-n_frames // self.factor))
