"""The known checkpoint formats: how each is detected and loaded, and what a user may have to add.

`load_any` asks each registered format in turn. A loader's module, and torch with it, is imported when its
format is chosen. If no format recognizes a file, the error lists the known ones.
What this file does not do: execute pickles, guess.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_asr.checkpoints import detect
from edge_asr.checkpoints.native_config import is_native, resolve_path
from edge_asr.errors import CheckpointError, require

if TYPE_CHECKING:
    from edge_asr.checkpoints.native import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Options of `load_any`.

    Attributes:
        feature_preset: the front end that the model was trained with, where a project changed its own between
            versions: "nemo" (2.5 and later) or "nemo-2.4". None reads it from the files.
        decoder: False leaves out attention decoders, which makes smaller bundles and takes checkpoints whose
            decoder edge-asr does not have.
    """

    feature_preset: str | None = None
    decoder: bool = True

    def refuse_feature_preset(self, what: str) -> None:
        """Refuse a feature preset, for formats that state their front end.

        Raises:
            CheckpointError: a preset was named.
        """
        if self.feature_preset is not None:
            raise CheckpointError(
                f"feature preset {self.feature_preset!r} was given for {what}, whose files say the front "
                "end; leave it out"
            )


DEFAULT_OPTIONS = LoadOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLoader:
    """One format.

    Attributes:
        name: that of the format, for people.
        what: the files it takes, for people.
        detect: looks at names and first bytes only, needs no torch, and never raises.
        load: raises CheckpointError.
    """

    name: str
    what: str
    detect: Callable[[Path], bool]
    load: Callable[[Path, LoadOptions], Checkpoint]


def _load_by(module: str) -> Callable[[Path, LoadOptions], Checkpoint]:
    """Make a `load` that imports a module of this package when it is called."""

    def load(path: Path, options: LoadOptions) -> Checkpoint:
        require("torch", extra="export")
        loaded: Checkpoint = importlib.import_module(f"edge_asr.checkpoints.{module}").load(path, options)
        return loaded

    return load


def _load_native(path: Path, options: LoadOptions) -> Checkpoint:
    options.refuse_feature_preset("an edge-asr checkpoint")
    require("torch", extra="export")
    loaded: Checkpoint = importlib.import_module("edge_asr.checkpoints.native").load_checkpoint(path)
    return loaded


_LOADERS: dict[str, CheckpointLoader] = {
    loader.name: loader
    for loader in (
        CheckpointLoader(
            name="edge-asr",
            what="a folder with config.json and model.safetensors",
            detect=is_native,
            load=_load_native,
        ),
        CheckpointLoader(name="nemo", what="a .nemo file", detect=detect.is_nemo, load=_load_by("nemo")),
        CheckpointLoader(
            name="parakeet",
            what="a Hugging Face folder of ParakeetForCTC",
            detect=detect.is_parakeet,
            load=_load_by("parakeet"),
        ),
        CheckpointLoader(
            name="wav2vec2",
            what="a Hugging Face folder of Wav2Vec2ConformerForCTC",
            detect=detect.is_wav2vec2,
            load=_load_by("wav2vec2"),
        ),
        CheckpointLoader(
            name="espnet",
            what="an ESPnet2 folder with config.yaml and a .pth file, or packed with meta.yaml",
            detect=detect.is_espnet,
            load=_load_by("espnet"),
        ),
        CheckpointLoader(
            name="wenet",
            what="a WeNet folder with train.yaml and final.pt",
            detect=detect.is_wenet,
            load=_load_by("wenet"),
        ),
        CheckpointLoader(
            name="torchaudio",
            what="a folder with model.pt and config.json of torchaudio's Conformer",
            detect=detect.is_torchaudio,
            load=_load_by("torchaudio"),
        ),
    )
}


def register_loader(loader: CheckpointLoader) -> None:
    """Add a format, or replace the one of the same name; earlier ones are asked first."""
    _LOADERS[loader.name] = loader


def find_loader(path: str | Path) -> CheckpointLoader | None:
    """Find the loader that recognizes `path` (or the name of an embedded model), or None; needs no torch."""
    resolved = resolve_path(path)
    return next((loader for loader in _LOADERS.values() if loader.detect(resolved)), None)


def load_any(path: str | Path, options: LoadOptions = DEFAULT_OPTIONS) -> Checkpoint:
    """Load a checkpoint of any registered format.

    Args:
        path: file or folder, or the name of an embedded model such as "tiny-en".
        options: what the files do not say.

    Raises:
        CheckpointError: when no loader recognizes it, or the one that does cannot read it.
    """
    loader = find_loader(path)
    if loader is not None:
        checkpoint = loader.load(resolve_path(path), options)
        return checkpoint if options.decoder else checkpoint.without_decoder()
    found = "exists but is none of these" if Path(path).exists() else "does not exist"
    known = "; ".join(f"{loader.name} ({loader.what})" for loader in _LOADERS.values())
    raise CheckpointError(f"{path} {found}: {known}")
