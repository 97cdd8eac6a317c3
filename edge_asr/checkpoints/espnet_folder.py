"""Finds the files of an ESPnet2 folder: as packed (meta.yaml, exp/, data/), or of one experiment.

It chooses config.yaml and the .pth file, and resolves the paths that config.yaml names, which were those of
the training machine or of the packed folder.
What this file does not do: read their content (espnet.py).

Source: espnet2/main_funcs/pack_funcs.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edge_asr.checkpoints.safe_archive import inside
from edge_asr.checkpoints.safe_yaml import load_yaml
from edge_asr.errors import CheckpointError

#: Snapshots that ESPnet's recipes decode with; the first that exists is taken.
_PREFERRED = ("valid.acc.ave.pth", "valid.acc.best.pth", "valid.loss.ave.pth", "valid.loss.best.pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class EspnetFolder:
    """The files of one model.

    Attributes:
        root: the folder that nothing may leave.
        config, weights: config.yaml and the .pth file.
        notes: sentences for people on how they were chosen.
    """

    root: Path
    config: Path
    weights: Path
    notes: tuple[str, ...] = ()

    def look_up(self, name: str) -> Path | None:
        """The file that the settings call `name`, by its path or else its base name; None if there is none.

        Raises:
            CheckpointError: a link that leaves the folder, or several of that base name.
        """
        relative = PurePosixPath(name)
        if not relative.is_absolute() and ".." not in relative.parts and relative.parts:
            path = inside(self.root, name)
            if path.is_file():
                return path
        found = [
            path for path in sorted(self.root.rglob("*")) if path.name == relative.name and path.is_file()
        ]
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(self.root)) for path in found)
            raise CheckpointError(f"{self.root} holds {relative.name} more than once ({names}); keep one")
        return inside(self.root, found[0].relative_to(self.root).as_posix()) if found else None

    def find(self, name: str) -> Path:
        """`look_up`, for files that are needed.

        Raises:
            CheckpointError: it is not there.
        """
        path = self.look_up(name)
        if path is None:
            raise CheckpointError(f"{self.root} lacks {name}, which its config.yaml names; copy it along")
        return path


def open_folder(path: Path) -> EspnetFolder:
    """The files of a model.

    Raises:
        CheckpointError: they are missing, lead out of the folder, or leave a choice.
    """
    if path.is_file():
        return EspnetFolder(root=path.parent, config=path.parent / "config.yaml", weights=path)
    if (path / "meta.yaml").is_file() and not (path / "config.yaml").is_file():
        where = f"{path.name}/meta.yaml"
        meta = load_yaml(path / "meta.yaml", where)
        config = _named(meta, "yaml_files", "asr_train_config", where)
        weights = _named(meta, "files", "asr_model_file", where)
        folder = EspnetFolder(root=path, config=inside(path, config), weights=inside(path, weights))
        for name, file in ((config, folder.config), (weights, folder.weights)):
            if not file.is_file():
                raise CheckpointError(f"{path} lacks {name}, which its meta.yaml names; copy it along")
        return folder
    found = sorted(file.name for file in path.glob("*.pth"))
    chosen = found[0] if len(found) == 1 else next((name for name in _PREFERRED if name in found), None)
    if chosen is None:
        raise CheckpointError(
            f"{path} holds {', '.join(found)}; name one of these files instead of the folder"
        )
    notes = (f"Of {len(found)} .pth files, {chosen} was taken.",) if len(found) > 1 else ()
    return EspnetFolder(root=path, config=path / "config.yaml", weights=inside(path, chosen), notes=notes)


def _named(meta: dict[str, object], section: str, key: str, where: str) -> str:
    names = meta.get(section)
    name = names.get(key) if isinstance(names, dict) else None
    if not isinstance(name, str):
        raise CheckpointError(f"{where} names no {section}.{key}; edge-asr takes packed ASR models")
    return name
