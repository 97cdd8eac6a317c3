"""What a checkpoint format is: how it is told, how it is loaded, and what a user may have to add.

What this file does not do: list the formats (`edge_asr.checkpoints`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_asr.checkpoints.native import Checkpoint
from edge_asr.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Options of `load_any`.

    Attributes:
        feature_preset: the front end that the model was trained with, where a project changed its own between
            versions: "nemo" (2.5 and later) or "nemo-2.4". None reads it from the files.
    """

    feature_preset: str | None = None

    def refuse_feature_preset(self, what: str) -> None:
        """For formats that leave nothing to say.

        Raises:
            CheckpointError: a preset was named.
        """
        if self.feature_preset is not None:
            raise CheckpointError(
                f"feature preset {self.feature_preset!r} was given for {what}, whose files say the front "
                "end; leave it out."
            )


DEFAULT_OPTIONS = LoadOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLoader:
    """One format.

    Attributes:
        name: of the format, for people.
        what: the files it takes, for people.
        detect: looks at names and first bytes only, and never raises.
        load: raises CheckpointError.
    """

    name: str
    what: str
    detect: Callable[[Path], bool]
    load: Callable[[Path, LoadOptions], Checkpoint]
