"""How many output frames a clip of n input frames gives: one rule with two numbers for every model.

Every stack of convolutions, padded or not, gives floor((n - first) / factor) + 1 frames: `factor` is the
product of its strides, `first` the number of input frames that the first output frame needs. NeMo's padded
stacks have first 1, so ceil(n / factor); ESPnet's unpadded ones 7 (by 4); wav2vec 2.0's 400 samples (by 320).
NeMo's causal ones have more padding than the first frame needs: -6 (by 8).

An exported graph always gives at least ceil(n / factor) frames, because other runtimes expect that many
(sherpa-onnx reads past a shorter output). Frames past `n_valid` mean nothing. This file has integers only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge_asr.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFrames:
    """The frame rule of one model.

    Attributes:
        factor: input frames per output frame.
        first: input frames that the first output frame needs; 0 or less if padding alone suffices.

    Raises:
        ConfigError: the factor is below 1, or a number is not whole.
    """

    factor: int
    first: int = 1

    def __post_init__(self) -> None:
        for name in ("factor", "first"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name} of the output frames is {value!r}; give a whole number")
        if self.factor < 1:
            raise ConfigError(f"factor of the output frames is {self.factor}; give 1 or more")

    @classmethod
    def from_convolutions(cls, stages: Iterable[tuple[int, int, int]]) -> OutputFrames:
        """Compute the rule of successive convolutions, each (kernel, stride, padding of both ends)."""
        factor, first = 1, 1
        for kernel, stride, padding in stages:
            # Output i of a stage reads its inputs up to i * stride + kernel - padding - 1.
            first += factor * (kernel - padding - 1)
            factor *= stride
        return cls(factor=factor, first=first)

    @classmethod
    def of(cls, rule: OutputFrames | int) -> OutputFrames:
        """Return a rule unchanged, and a bare factor as the rule ceil(n / factor)."""
        return cls(factor=rule) if isinstance(rule, int) else rule

    def n_valid(self, n_frames: int) -> int:
        """Count the output frames of a clip of `n_frames`; a clip without frames has none."""
        return max((n_frames - self.first) // self.factor + 1, 0) if n_frames > 0 else 0

    def n_graph(self, n_frames: int) -> int:
        """Compute the time axis of the graph's output for a time axis of `n_frames` >= 1 at its input."""
        return max(self.n_valid(n_frames), -(-n_frames // self.factor))
