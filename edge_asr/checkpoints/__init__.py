"""Checkpoints: our own format and other projects', and the registry that tells them apart.

It saves and loads native checkpoints; `load_any` asks each registered loader in turn, by the files' names. If
no loader recognizes a file, the error lists the known formats.
What this file does not do: execute pickles, guess.
"""

from pathlib import Path

from edge_asr.checkpoints import espnet, nemo, parakeet, torchaudio, wav2vec2, wenet
from edge_asr.checkpoints.hf_folder import architecture
from edge_asr.checkpoints.native import (
    Checkpoint,
    is_native,
    load_checkpoint,
    resolve_path,
    save_checkpoint,
)
from edge_asr.checkpoints.registry import DEFAULT_OPTIONS, CheckpointLoader, LoadOptions
from edge_asr.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "CheckpointLoader",
    "LoadOptions",
    "find_loader",
    "load_any",
    "load_checkpoint",
    "register_loader",
    "save_checkpoint",
]


_LOADERS: dict[str, CheckpointLoader] = {}


def register_loader(loader: CheckpointLoader) -> None:
    """Add a format, or replace the one of the same name; earlier ones are asked first."""
    _LOADERS[loader.name] = loader


def find_loader(path: str | Path) -> CheckpointLoader | None:
    """The loader that recognizes `path` (or the name of an embedded model), or None."""
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
        return loader.load(resolve_path(path), options)
    found = "exists but is none of these" if Path(path).exists() else "does not exist"
    known = "; ".join(f"{loader.name} ({loader.what})" for loader in _LOADERS.values())
    raise CheckpointError(f"{path} {found}: {known}.")


def _is_native(path: Path) -> bool:
    # Hugging Face folders have files of the same names.
    return is_native(path) and architecture(path) is None


def _load_native(path: Path, options: LoadOptions) -> Checkpoint:
    options.refuse_feature_preset("an edge-asr checkpoint")
    return load_checkpoint(path)


register_loader(
    CheckpointLoader(
        name="edge-asr",
        what="a folder with config.json and model.safetensors",
        detect=_is_native,
        load=_load_native,
    )
)
for _module in (nemo, parakeet, wav2vec2, espnet, wenet, torchaudio):
    register_loader(_module.LOADER)
