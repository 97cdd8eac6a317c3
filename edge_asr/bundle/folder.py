"""The bundle: a folder that is the only contract between export and runtime.

`bundle.json` describes everything a runtime needs (features, subsampling, vocabulary, artefacts
with hashes, provenance, what was proven); reading one validates all of it, file hashes included.
This file reads, checks and describes bundles with the standard library and numpy only; it does
not make artefacts (edge_asr.export) and does not run them (edge_asr.runtime).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_asr.atomic import FolderKind
from edge_asr.bundle.manifest import Artifact, BundleInfo, CpuGraph, Precision, StreamingInfo
from edge_asr.bundle.names import MANIFEST_NAME, TOKENS_NAME
from edge_asr.errors import BundleError, EdgeAsrError
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    pass


#: Folder of the models that ship inside the package; each holds `bundle/` and `checkpoint/`.
EMBEDDED_MODELS = Path(__file__).resolve().parent.parent / "models"
DEFAULT_MODEL = "tiny-en"
#: Only a folder of this kind is ever replaced by an export.
BUNDLE_FOLDER = FolderKind("bundle", MANIFEST_NAME, BundleError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A validated bundle on disk.

    Attributes:
        path: the folder.
        info: content of bundle.json.
        vocabulary: content of tokens.txt.
    """

    path: Path
    info: BundleInfo
    vocabulary: Vocabulary

    @classmethod
    def load(
        cls,
        path_or_name: str | Path = DEFAULT_MODEL,
        *,
        allow_unverified: bool = False,
        check_hashes: bool = True,
    ) -> Bundle:
        """Read and validate a bundle folder, or an embedded model by name.

        Args:
            path_or_name: a folder, or the name of an embedded model ("tiny-en").
            allow_unverified: also accept a bundle whose proof failed.
            check_hashes: also `check_hashes`.

        Raises:
            BundleError: anything missing, altered, unknown or unverified; the message names it.
        """
        path = resolve_bundle_path(path_or_name)
        manifest = path / MANIFEST_NAME
        try:
            data = json.loads(manifest.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BundleError(
                f"{path} has no {MANIFEST_NAME}; give a folder that `edge-asr export` wrote"
            ) from error
        except (ValueError, UnicodeDecodeError) as error:
            raise BundleError(f"{manifest} is not valid JSON ({error}); export the model again") from error
        if not isinstance(data, dict):
            raise BundleError(
                f"{manifest} holds a {type(data).__name__}, not an object; export the model again"
            )
        try:
            info = BundleInfo.from_dict(data)
            vocabulary = Vocabulary.read_token_file(path / TOKENS_NAME, info.vocabulary_kind)
        except FileNotFoundError as error:
            raise BundleError(f"{path} has no {TOKENS_NAME}; export the model again") from error
        except (EdgeAsrError, TypeError, KeyError) as error:
            raise BundleError(f"{path}: {error}") from error
        if (len(vocabulary), vocabulary.blank_id) != (info.vocabulary_size, info.blank_id):
            raise BundleError(
                f"{path / TOKENS_NAME} has {len(vocabulary)} tokens, blank {vocabulary.blank_id}; "
                f"bundle.json says {info.vocabulary_size} and {info.blank_id}; export the model again"
            )
        if not info.verified and not allow_unverified:
            raise BundleError(
                f"{path} failed its proof when it was exported (see report.md); export again, "
                "or pass allow_unverified=True to run it all the same"
            )
        bundle = cls(path=path, info=info, vocabulary=vocabulary)
        bundle._check_sizes()
        if check_hashes:
            bundle.check_hashes()
        return bundle

    def check_hashes(self) -> None:
        """Compare every artefact with its sha256; reads the files once.

        Raises:
            BundleError: an altered file.
        """
        for file in self._files:
            if sha256_of(self.path / file.file) != file.sha256:
                raise self._altered(file)

    def artifact(self, precision: Precision) -> Artifact:
        """The artefact of a precision.

        Raises:
            BundleError: the bundle has none.
        """
        for artifact in self.info.artifacts:
            if artifact.precision == precision:
                return artifact
        have = ", ".join(a.precision for a in self.info.artifacts)
        raise BundleError(f"{self.path} has no {precision} model, it has: {have}")

    def artifact_path(self, precision: Precision) -> Path:
        """Path of the artefact of a precision."""
        return self.path / self.artifact(precision).file

    @property
    def streaming(self) -> StreamingInfo:
        """The streaming graph.

        Raises:
            BundleError: the bundle has none.
        """
        if self.info.streaming is None:
            raise BundleError(
                f"{self.path} has no streaming model; export the checkpoint again with --streaming"
            )
        return self.info.streaming

    @property
    def _files(self) -> list[Artifact | CpuGraph]:
        streaming = () if self.info.streaming is None else (self.info.streaming.artifact,)
        artifacts = (*self.info.artifacts, *streaming)
        return [*artifacts, *(a.cpu_graph for a in artifacts if a.cpu_graph is not None)]

    def _check_sizes(self) -> None:
        for file in self._files:
            path = self.path / file.file
            if not path.is_file():
                raise BundleError(f"{path} is missing, though bundle.json lists it; export the model again")
            if path.stat().st_size != file.size_bytes:
                raise self._altered(file)

    def _altered(self, file: Artifact | CpuGraph) -> BundleError:
        path = self.path / file.file
        return BundleError(
            f"{path} ({path.stat().st_size} bytes) is not the file that bundle.json "
            f"describes ({file.size_bytes} bytes, sha256 {file.sha256[:12]}...); "
            "copy the bundle again or export the model again"
        )


def resolve_bundle_path(path_or_name: str | Path) -> Path:
    """Folder of a bundle: an embedded model's when a bare name matches one, else the path itself.

    Raises:
        BundleError: neither exists.
    """
    path = Path(path_or_name)
    if path.is_dir():
        return path
    name = str(path_or_name)
    embedded = EMBEDDED_MODELS / name / "bundle"
    if path.name == name and embedded.is_dir():
        return embedded
    names = list_embedded_models()
    raise BundleError(
        f"no bundle at {name!r}: no such folder, and the embedded models are {names or 'none'}; "
        "give a folder that `edge-asr export` wrote"
    )


def list_embedded_models() -> list[str]:
    """Names of the models that ship inside the package."""
    return sorted(p.parent.parent.name for p in EMBEDDED_MODELS.glob(f"*/bundle/{MANIFEST_NAME}"))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, lower-case hex, read in blocks."""
    import hashlib  # loads OpenSSL; `Recognizer.load` gets here while the backend starts

    # One block that stays in the cache: new memory for each would add two thirds of the hash's own time.
    block = memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        digest = hashlib.sha256()
        while n_read := file.readinto(block):
            digest.update(block[:n_read])
    return digest.hexdigest()
