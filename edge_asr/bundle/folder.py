"""Finds, reads and checks a bundle: the folder that is the only contract between export and runtime.

`bundle.json` describes everything that a runtime needs (features, subsampling, vocabulary, artifacts
with hashes, provenance, what was proven); reading one validates all of it, file hashes included.
This file needs only the standard library and numpy.
What this file does not do: make artifacts (edge_asr.export), run them (edge_asr.runtime).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_asr.atomic import FolderKind
from edge_asr.bundle.manifest import (
    Artifact,
    AttentionDecoderInfo,
    BundleInfo,
    CpuGraph,
    LanguageModelFile,
    Precision,
    StreamingInfo,
)
from edge_asr.bundle.names import MANIFEST_NAME, TOKENS_NAME
from edge_asr.errors import BundleError, VocabularyError
from edge_asr.records import read_json
from edge_asr.vocabulary import Vocabulary

#: Folder of the models that ship inside the package; each holds `bundle/` and `checkpoint/`.
EMBEDDED_MODELS = Path(__file__).resolve().parent.parent / "models"
DEFAULT_MODEL = "tiny-en"
#: Most bytes that are read, more than any bundle has: a manifest has 4 kB, the tokens of 100 000 pieces 2 MB.
MAX_MANIFEST_BYTES, MAX_TOKENS_BYTES = 4 << 20, 32 << 20
#: The key that ONNX (onnx.proto, TensorProto.external_data) has before the name of a file with weights: a
#: protobuf string of 8 bytes, after its tag and length.
_EXTERNAL_DATA = b"\x0a\x08location"
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
            check_hashes: also compare every hash.

        Raises:
            BundleError: something is missing, altered, unknown or unverified; the message names it.
        """
        path = resolve_bundle_path(path_or_name)
        manifest = path / MANIFEST_NAME
        try:
            data = read_json(
                manifest,
                error=BundleError,
                remedy="export the model again",
                max_bytes=MAX_MANIFEST_BYTES,
            )
        except FileNotFoundError as error:
            raise BundleError(
                f"{path} has no {MANIFEST_NAME}; give a folder that `edge-asr export` wrote"
            ) from error
        info = BundleInfo.from_dict(data, str(manifest))
        vocabulary = _read_vocabulary(path / TOKENS_NAME, info)
        if (len(vocabulary), vocabulary.blank_id) != (info.vocabulary_size, info.blank_id):
            raise BundleError(
                f"{path / TOKENS_NAME} has {len(vocabulary)} tokens, blank {vocabulary.blank_id}; "
                f"bundle.json says {info.vocabulary_size} and {info.blank_id}; export the model again"
            )
        if not info.verified and not allow_unverified:
            raise BundleError(
                f"{path} failed its proof when it was exported (see report.md); export again, "
                "or pass allow_unverified=True to run it anyway"
            )
        bundle = cls(path=path, info=info, vocabulary=vocabulary)
        bundle._check_sizes()
        if check_hashes:
            bundle.check_hashes()
        return bundle

    def check_hashes(self) -> None:
        """Compare every artifact, and tokens.txt, with its sha256; reads the files once.

        Raises:
            BundleError: a file was altered, or a model has weights in other files, which no hash covers.
        """
        tokens = self.info.tokens_sha256
        if tokens is not None and sha256_of(self.path / TOKENS_NAME) != tokens:
            raise BundleError(
                f"{self.path / TOKENS_NAME} is not the file that bundle.json describes (sha256 "
                f"{tokens[:12]}...); copy the bundle again or export the model again"
            )
        for file in self._files:
            path = self.path / file.file
            sha256, found = _hash_and_find(path, _EXTERNAL_DATA)
            if sha256 != file.sha256:
                raise self._altered(file)
            if found and not isinstance(file, LanguageModelFile) and not self._reads_artifact(file):
                raise BundleError(
                    f"{path} keeps weights in another file (ONNX external data), which no hash in "
                    "bundle.json covers; export the model again: edge-asr writes each model in one file"
                )

    def _reads_artifact(self, file: Artifact | CpuGraph) -> bool:
        """Tell whether the weights of a graph lie in an artifact, whose hash covers them."""
        return isinstance(file, CpuGraph) and file.weights_file in {a.file for a in self._artifacts}

    def artifact(self, precision: Precision) -> Artifact:
        """Return the artifact of a precision.

        Raises:
            BundleError: the bundle has none.
        """
        for artifact in self.info.artifacts:
            if artifact.precision == precision:
                return artifact
        have = ", ".join(a.precision for a in self.info.artifacts)
        raise BundleError(f"{self.path} has no {precision} model, it has: {have}")

    def artifact_behind(self, precision: Precision) -> Artifact:
        """Return the artifact that a backend of a precision computes; FP16 engines need fp32's only.

        Raises:
            BundleError: the bundle has neither.
        """
        have = [artifact.precision for artifact in self.info.artifacts]
        return self.artifact("fp32" if precision == "fp16" and "fp16" not in have else precision)

    def artifact_path(self, precision: Precision) -> Path:
        """Return the path of the artifact of a precision."""
        return self.path / self.artifact(precision).file

    @property
    def language_model_path(self) -> Path | None:
        """Return the path of the language model; None without one."""
        entry = self.info.language_model
        return None if entry is None else self.path / entry.file

    @property
    def decoder(self) -> AttentionDecoderInfo:
        """Return the attention decoder.

        Raises:
            BundleError: the bundle has none.
        """
        if self.info.decoder is None:
            raise BundleError(
                f"{self.path} has no attention decoder, which the decoders rescoring and attention need; "
                "choose greedy or beam, or export a checkpoint that has one, without --no-decoder"
            )
        return self.info.decoder

    @property
    def streaming(self) -> StreamingInfo:
        """Return the streaming graph.

        Raises:
            BundleError: the bundle has none.
        """
        if self.info.streaming is None:
            raise BundleError(
                f"{self.path} has no streaming model; export the checkpoint again with --streaming"
            )
        return self.info.streaming

    @property
    def _artifacts(self) -> tuple[Artifact, ...]:
        owners = (self.info.streaming, self.info.decoder)
        return (*self.info.artifacts, *(a for owner in owners if owner is not None for a in owner.artifacts))

    @property
    def _files(self) -> list[Artifact | CpuGraph | LanguageModelFile]:
        copies = (artifact.cpu_graph for artifact in self._artifacts)
        language_model = () if self.info.language_model is None else (self.info.language_model,)
        return [*self._artifacts, *(copy for copy in copies if copy is not None), *language_model]

    def _check_sizes(self) -> None:
        for file in self._files:
            path = self.path / file.file
            if not path.is_file():
                raise BundleError(f"{path} is missing, though bundle.json lists it; export the model again")
            if path.stat().st_size != file.size_bytes:
                raise self._altered(file)

    def _altered(self, file: Artifact | CpuGraph | LanguageModelFile) -> BundleError:
        path = self.path / file.file
        return BundleError(
            f"{path} ({path.stat().st_size} bytes) is not the file that bundle.json "
            f"describes ({file.size_bytes} bytes, sha256 {file.sha256[:12]}...); "
            "copy the bundle again or export the model again"
        )


def _read_vocabulary(path: Path, info: BundleInfo) -> Vocabulary:
    if not path.is_file():
        raise BundleError(f"{path.parent} has no {TOKENS_NAME}; export the model again")
    if path.stat().st_size > MAX_TOKENS_BYTES:
        raise BundleError(f"{path} has {path.stat().st_size} bytes; at most {MAX_TOKENS_BYTES} are read")
    try:
        return Vocabulary.read_token_file(path, info.vocabulary_kind)
    except VocabularyError as error:
        raise BundleError(f"{error}; copy the bundle again or export the model again") from error


def find_embedded(path_or_name: str | Path, part: Literal["bundle", "checkpoint"]) -> Path | None:
    """Find the bundle or checkpoint of the embedded model that a bare name means; None without one."""
    name = str(path_or_name)
    folder = EMBEDDED_MODELS / name / part
    return folder if name and Path(name).name == name and folder.is_dir() else None


def list_embedded_models(part: Literal["bundle", "checkpoint"] = "bundle") -> list[str]:
    """List the models that ship inside the package."""
    return sorted(folder.parent.name for folder in EMBEDDED_MODELS.glob(f"*/{part}"))


def resolve_bundle_path(path_or_name: str | Path) -> Path:
    """Find the folder of a bundle: the path itself, or else the embedded model of that name.

    Raises:
        BundleError: neither exists.
    """
    path = Path(path_or_name)
    if str(path_or_name) and path.is_dir():
        return path
    embedded = find_embedded(path_or_name, "bundle")
    if embedded is not None:
        return embedded
    names = ", ".join(list_embedded_models()) or "none"
    raise BundleError(
        f"no bundle at {str(path_or_name)!r}: no such folder, and the embedded models are {names}; "
        "give a folder that `edge-asr export` wrote"
    )


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in lower-case hex, read in blocks."""
    return _hash_and_find(path, None)[0]


def _hash_and_find(path: Path, pattern: bytes | None) -> tuple[str, bool]:
    """Compute the SHA-256 of a file, and find whether it holds `pattern`, even across two blocks."""
    import hashlib  # loads OpenSSL; `Recognizer.load` gets here while the backend starts

    # One block stays in the cache; new memory for each would add two thirds of the hash's own time.
    n_kept = 0 if pattern is None else len(pattern) - 1
    block = bytearray(n_kept + (1 << 18))
    fresh = memoryview(block)[n_kept:]
    found = False
    with path.open("rb", buffering=0) as file:
        digest = hashlib.sha256()
        while n_read := file.readinto(fresh):
            digest.update(fresh[:n_read])
            if pattern is not None and not found:
                found = block.find(pattern, 0, n_kept + n_read) >= 0
                block[:n_kept] = block[n_read : n_read + n_kept]
    return digest.hexdigest(), found
