"""Tensors from other people's weight files, without executing anything in them.

It uses torch.load with `weights_only=True` only, and safetensors, after checking sizes. A file that requires
an object to be unpickled is refused, and the message names the object.
What this file does not do: unpickle objects.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edge_asr.checkpoints.safe_archive import MAX_MEMBER_BYTES, MAX_MEMBERS
from edge_asr.errors import CheckpointError

MAX_EXPANSION = 16
"""Most float32 bytes per byte held: 8-bit values take 4, and a few tensors may share a storage."""


def load_tensors(
    source: Path | bytes, where: str | None = None, *, key: str | None = None
) -> dict[str, Tensor]:
    """Name -> tensor of a `.pth`, `.pt`, `.ckpt` or `.bin` file.

    Args:
        source: the file, or its content.
        where: its name for messages; the path when None.
        key: the entry that holds the state dict, such as "state_dict"; None when the file is one.

    Raises:
        CheckpointError: missing, damaged, holding anything but tensors and plain values, or too large.
    """
    name = where or (str(source) if isinstance(source, Path) else "the weights")
    if isinstance(source, Path) and not source.is_file():
        raise CheckpointError(f"{name} is missing; the checkpoint is incomplete")
    _check_zip(source, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is an error below
            handle = source if isinstance(source, Path) else io.BytesIO(source)
            loaded: Any = torch.load(handle, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{name} holds Python objects beside tensors, which could run code ({_first_line(error)}); save "
            "its state_dict alone, or ask its author for safetensors"
        ) from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OSError,
    ) as error:
        raise CheckpointError(f"{name} is damaged or no PyTorch file ({_first_line(error)})") from error
    if key is not None:
        if not isinstance(loaded, Mapping) or key not in loaded:
            raise CheckpointError(f"{name} has no entry {key!r} with the weights")
        loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{name} holds a {type(loaded).__name__}, not a state dict of named tensors")
    return checked_tensors(loaded, name)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a safetensors file.

    Raises:
        CheckpointError: missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the checkpoint is incomplete")
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            return checked_tensors({name: handle.get_tensor(name) for name in list(handle.keys())}, str(path))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def checked_tensors(loaded: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """Dense tensors by name, floating ones as float32.

    Raises:
        CheckpointError: an entry that is no dense tensor, a name that is no text, values not finite, or
            tensors that stand for far more values than they hold (one number repeated, say).
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    held = claimed = 0
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise CheckpointError(
                f"{where}: the entry {name!r} is a {type(value).__name__}, not a dense tensor"
            )
        tensor = value.detach()
        if tensor.device.type != "cpu" or tensor.is_nested:
            raise CheckpointError(f"{where}: {name} has no values ({tensor.device.type}); save it on a CPU")
        storage = tensor.untyped_storage()
        held += 0 if storage.data_ptr() in storages else storage.nbytes()
        storages.add(storage.data_ptr())
        claimed += tensor.numel() * 4
        if claimed > MAX_EXPANSION * held + (1 << 20):
            raise CheckpointError(
                f"{where}: {name} brings the tensors to {claimed} bytes, of which the file holds {held}; "
                "they are not opened"
            )
        if tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(f"{where}: {name} is {tensor.dtype}; edge-asr takes floating-point weights")
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"{where}: {name} holds values that are not finite; the file is damaged"
                )
        tensors[name] = tensor
    return tensors


def _check_zip(source: Path | bytes, where: str) -> None:
    """Refuse zip bombs: torch stores tensors uncompressed, so the content is no larger than the file."""
    handle = source if isinstance(source, Path) else io.BytesIO(source)
    if not zipfile.is_zipfile(handle):
        return  # the format of torch < 1.6; it has no compression
    try:
        with zipfile.ZipFile(handle) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise CheckpointError(f"{where} is damaged ({error}); copy it again") from error
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    total = sum(entry.file_size for entry in entries)
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if len(entries) > MAX_MEMBERS * 10 or total > MAX_MEMBER_BYTES or total > max(4 * size, 1 << 24):
        raise CheckpointError(
            f"{where} has {size} bytes and would unpack to {total}{' (compressed)' if compressed else ''}; "
            "it is not opened"
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0]
    for part in text.splitlines():
        if "WeightsUnpickler error" in part:
            line = part.strip()
            break
    return line[:200]
