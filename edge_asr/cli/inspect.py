"""`edge-asr inspect`: what is in a bundle or a checkpoint, whether it is whole, and how it can be exported.

A bundle is loaded with all its checks, file hashes included. Our own checkpoint is read without PyTorch:
its config.json is validated and the header of its safetensors file is compared with the file's size; the
weights themselves are not read. Another project's checkpoint is loaded, because only that shows whether
edge-asr supports its network; if not, the error says why. Nothing is run.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_asr.cli.terminal import print_json
from edge_asr.errors import BundleError, CheckpointError
from edge_asr.printable import printable

if TYPE_CHECKING:
    from edge_asr.checkpoints import SourceFacts
    from edge_asr.model.config import ConformerConfig

_SAFETENSORS_MAX_HEADER = 100_000_000  # huggingface/safetensors, MAX_HEADER_SIZE


@click.command(name="inspect")
@click.argument("path", metavar="BUNDLE|CHECKPOINT")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--feature-preset",
    help="Front end of a NeMo checkpoint whose file does not say: nemo (2.5 and later) or nemo-2.4.",
)
def command(path: str, as_json: bool, feature_preset: str | None) -> None:
    """Show what BUNDLE or CHECKPOINT holds: a folder, a .nemo file, or an embedded model such as tiny-en.

    Checkpoints may be edge-asr's, NeMo's, Hugging Face's, ESPnet's, WeNet's or torchaudio's. Every artifact
    of a bundle is compared with its hash; a missing or altered one is an error.
    """
    description = describe(path, feature_preset=feature_preset)
    if as_json:
        print_json(description)
    else:
        _print_tables(description)


def describe(path_or_name: str | Path, *, feature_preset: str | None = None) -> dict[str, Any]:
    """Describe a bundle or checkpoint, ready for JSON; the key "kind" says which it is.

    Args:
        path_or_name: a bundle, a checkpoint of any known project, or an embedded model's name.
        feature_preset: see `edge_asr.checkpoints.LoadOptions`.

    Raises:
        BundleError, CheckpointError: it is neither, not whole, or not supported; the message says why.
        MissingDependencyError: it is another project's checkpoint, and PyTorch is not installed.
    """
    from edge_asr.checkpoints import find_loader

    path = Path(path_or_name)
    if not path.exists() or (path / "bundle.json").exists():
        _refuse_preset(path, feature_preset)
        return _describe_bundle(path_or_name)
    loader = find_loader(path)
    if loader is None:
        what = "a folder" if path.is_dir() else "a file" if path.is_file() else "a pipe, socket or device"
        raise BundleError(
            f"{path} is not a bundle (no bundle.json) and not a known checkpoint; it is {what} that no "
            "loader takes"
        )
    if loader.name != "edge-asr":
        return _describe_foreign(path, loader.name, feature_preset)
    _refuse_preset(path, feature_preset)
    return _describe_checkpoint(path)


def _refuse_preset(path: Path, feature_preset: str | None) -> None:
    if feature_preset is not None:
        raise CheckpointError(f"{path} states its front end itself; leave --feature-preset out")


def _describe_foreign(path: Path, loader: str, feature_preset: str | None) -> dict[str, Any]:
    from edge_asr.checkpoints import LoadOptions, load_any
    from edge_asr.model.streamable import describe_streaming

    checkpoint = load_any(path, LoadOptions(feature_preset=feature_preset))
    config, vocabulary = checkpoint.model_config, checkpoint.vocabulary
    sizes = {name: tensor.numel() for name, tensor in checkpoint.state_dict.items()}
    frames = config.output_frames
    return {
        "kind": "checkpoint",
        "format": loader,
        "path": str(path),
        "size_bytes": path.stat().st_size if path.is_file() else _folder_bytes(path),
        "n_parameters": sum(n for name, n in sizes.items() if not _is_buffer(name)),
        "n_tensors": len(sizes),
        "decoder": _describe_decoder(config, checkpoint.facts, sizes),
        "model": config.to_dict(),
        "output_frames": {"factor": frames.factor, "first": frames.first},
        "streaming": describe_streaming(
            config,
            checkpoint.features,
            checkpoint.attention_contexts,
            style=checkpoint.facts.attention_context_style,
            dynamic_chunks=checkpoint.has_dynamic_chunks,
        ),
        "features": checkpoint.features.to_dict(),
        "vocabulary_kind": vocabulary.kind,
        "vocabulary_size": len(vocabulary),
        "blank_id": vocabulary.blank_id,
        "tokens": _token_sample(vocabulary.tokens),
        "tokenizer": checkpoint.tokenizer_model is not None,
        "provenance": checkpoint.provenance,
        "notes": list(checkpoint.notes),
        "export": f"edge-asr export {path} -o BUNDLE",
    }


def _describe_decoder(
    config: ConformerConfig, facts: SourceFacts, sizes: Mapping[str, int]
) -> dict[str, Any] | None:
    """Describe the attention decoders of a checkpoint by their direction; None without one."""
    if config.decoder is None:
        return None
    description: dict[str, Any] = {}
    for direction, name in (("left_to_right", "decoder"), ("right_to_left", "right_decoder")):
        decoder = getattr(config, name)
        if decoder is not None:
            description[direction] = {
                "kind": decoder.kind,
                "n_layers": decoder.n_layers,
                "d_model": decoder.d_model,
                "n_parameters": sum(n for tensor, n in sizes.items() if tensor.startswith(f"{name}.")),
            }
    weights = {"ctc_weight": facts.ctc_weight, "reverse_weight": facts.reverse_weight}
    return {**description, **{name: weight for name, weight in weights.items() if weight is not None}}


def _is_buffer(name: str) -> bool:
    return name.rpartition(".")[2] in _BUFFERS or name.startswith("cmvn.")


def _describe_bundle(path_or_name: str | Path) -> dict[str, Any]:
    from edge_asr.bundle.confidence import read_tables
    from edge_asr.bundle.folder import Bundle

    bundle = Bundle.load(path_or_name, allow_unverified=True)
    facts = ("precision", "decoder", "n_words", "error_before", "error_after")
    tables = [{name: getattr(table, name) for name in facts} for table in read_tables(bundle)]
    return {
        "kind": "bundle",
        "path": str(bundle.path),
        "size_bytes": _folder_bytes(bundle.path),
        **bundle.info.to_dict(),
        **({"confidence": tables} if tables else {}),
        "tokens": _token_sample(bundle.vocabulary.tokens),
    }


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    from edge_asr.checkpoints.native_config import CONFIG_NAME, TOKENIZER_NAME, WEIGHTS_NAME, read_config
    from edge_asr.model.streamable import describe_streaming

    weights_file = path / WEIGHTS_NAME
    for file in (path / CONFIG_NAME, weights_file):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, so {path} is not a whole checkpoint; copy it again")
    config = read_config(path)
    model, vocabulary, facts = config.model, config.vocabulary, config.facts
    default = () if model.attention_context is None else (model.attention_context,)
    tensors = read_safetensors_header(weights_file)
    sizes = {name: math.prod(entry["shape"]) for name, entry in tensors.items()}
    return {
        "kind": "checkpoint",
        "path": str(path),
        "size_bytes": _folder_bytes(path),
        "format_version": config.format_version,
        "n_parameters": sum(n for name, n in sizes.items() if not _is_buffer(name)),
        "n_tensors": len(sizes),
        "weights": dict(Counter(entry["dtype"] for entry in tensors.values())),
        "decoder": _describe_decoder(model, facts, sizes),
        "model": config.to_dict()["model"],
        "streaming": describe_streaming(
            model,
            config.features,
            facts.attention_contexts or default,
            style=facts.attention_context_style,
            dynamic_chunks=facts.dynamic_chunks,
        ),
        "features": config.features.to_dict(),
        "vocabulary_kind": vocabulary.kind,
        "vocabulary_size": len(vocabulary),
        "blank_id": vocabulary.blank_id,
        "tokens": _token_sample(vocabulary.tokens),
        "tokenizer": (path / TOKENIZER_NAME).is_file(),
        "provenance": dict(config.provenance),
        "notes": list(facts.notes),
    }


#: Entries of a state dict that are not parameters: BatchNorm statistics (torch.nn.modules.batchnorm).
_BUFFERS = frozenset({"running_mean", "running_var", "num_batches_tracked"})


def read_safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """Read name -> {"dtype", "shape", "data_offsets"} of a safetensors file, and check its length.

    Format: 8 bytes little-endian header length, JSON header, data (huggingface/safetensors, README).

    Raises:
        CheckpointError: it is not a safetensors file, or shorter or longer than its header says.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as handle:
            (n_header,) = struct.unpack("<Q", handle.read(8))
            if n_header > min(size - 8, _SAFETENSORS_MAX_HEADER):
                raise ValueError(f"its header claims {n_header} bytes")
            header = json.loads(handle.read(n_header))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (struct.error, ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{file} is not a safetensors file ({error}); copy the checkpoint again"
        ) from error
    if 8 + n_header + end != size:
        raise CheckpointError(
            f"{file} has {size} bytes, its header describes {8 + n_header + end}; copy the checkpoint again"
        )
    return tensors


def _folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _token_sample(tokens: tuple[str, ...]) -> list[str]:
    """Return all tokens of a small vocabulary, else the first 16 and the last two around an ellipsis."""
    return list(tokens) if len(tokens) <= 64 else [*tokens[:16], "…", *tokens[-2:]]


_ARTIFACT_COLUMNS = ("file", "precision", "weights", "size", "opset", "ir_version", "sha256")
_STEP_COLUMNS = {
    "reference": "reference",
    "candidate": "candidate",
    "n_cases": "cases",
    "max_log_prob_error": "max error",
    "same_text": "same text",
    "passed": "passed",
}


def _print_tables(description: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    main = Table(title=f"{description['kind']} {escape(printable(description['path']))}", show_header=False)
    for key, value in description.items():
        if key in ("kind", "path", "artifacts", "tokens", "verification") or (
            key in ("notes", "decoder") and not value
        ):
            continue
        if key == "streaming" and value and "geometry" in value:
            value = value["geometry"]  # the artifact has its row below
        if key == "decoder" and value and "left" in value:
            value = {name: item for name, item in value.items() if name not in ("left", "right")}
        main.add_row(key, _cell(_text(key, value)))
    main.add_row("tokens", _cell(" ".join(description["tokens"])))
    console.print(main)
    steps = description.get("verification", {}).get("steps")
    if steps:
        proof = Table(title="proof: max abs log-prob error, identical greedy text")
        for header in _STEP_COLUMNS.values():
            proof.add_column(header)
        for step in steps:
            proof.add_row(*(_cell(_short(step.get(key, ""))) for key in _STEP_COLUMNS))
        console.print(proof)
    if "artifacts" in description:
        artifacts = Table(title="artifacts (hashes compared)")
        for column in _ARTIFACT_COLUMNS:
            artifacts.add_column(column)
        streaming = description.get("streaming")
        streams = [streaming[key] for key in ("artifact", "int8") if streaming[key]] if streaming else []
        decoder = description.get("decoder") or {}
        sides = [decoder[side] for side in ("left", "right") if decoder.get(side)]
        steps = [one[key] for one in sides for key in ("cross", "steps", "int8") if one[key]]
        for entry in (*description["artifacts"], *streams, *steps):
            row = {**entry, "size": _text("size_bytes", entry["size_bytes"])}
            row["sha256"] = entry["sha256"][:8]
            artifacts.add_row(*(_cell(str(row[column])) for column in _ARTIFACT_COLUMNS))
        console.print(artifacts)
        if not description["verified"]:
            console.print("[bold red]unverified[/]: it failed its proof, see report.md in the folder")


def _cell(text: str) -> str:
    from rich.markup import escape

    return escape("\n".join(printable(line) for line in text.split("\n")))


def _short(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def _text(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"{value / 1e6:.2f} MB"
    if key == "n_parameters":
        return f"{value:,}"
    if key == "notes":
        return "\n".join(f"- {note}" for note in value)
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {json.dumps(item, ensure_ascii=False)}" for name, item in value.items())
    return str(value)
