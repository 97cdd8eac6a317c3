"""Which engines this machine trusts: those that it built, told by a seal that only it can make.

A plan is a native program, and its sidecar is a file beside it, so whoever ships a folder can write both. The
seal in a sidecar is a keyed hash of everything else in it, the hash of the plan and the proof included. The
key lies in the user's state folder (~/.local/state/edge-asr/engines.key): an engine of a downloaded bundle
has no seal, or another machine's. Machines that share the file trust each other's engines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path

from edge_asr.errors import EngineError
from edge_asr.runtime.engine.sidecar import EngineSidecar

_KEY_BYTES = 32


def state_folder(variable: str = "XDG_STATE_HOME", default: str = ".local/state") -> Path | None:
    """Return the user's folder of edge-asr for a kind of file; None without a home."""
    given = os.environ.get(variable, "")
    folder = given if os.path.isabs(given) else os.path.join(os.path.expanduser("~"), default)
    return Path(folder, "edge-asr") if os.path.isabs(folder) else None


def machine_key() -> bytes:
    """Return the key of this machine (more exactly, of this user of it), which is made at the first call.

    Raises:
        EngineError: it cannot be read or written.
    """
    folder = state_folder()
    try:
        if folder is None:
            raise OSError("there is no home folder; set XDG_STATE_HOME to a folder that stays")
        return _read_key(folder) or _make_key(folder)
    except OSError as error:
        raise EngineError(f"the key that marks engines as built here cannot be kept: {error}") from error


def seal(sidecar: EngineSidecar) -> EngineSidecar:
    """Return the sidecar with this machine's seal.

    Raises:
        EngineError: as `machine_key`.
    """
    return dataclasses.replace(sidecar, seal=_hash(sidecar, machine_key()))


def is_sealed(sidecar: EngineSidecar) -> bool:
    """Tell whether this machine built the engine and wrote its sidecar."""
    folder, key = state_folder(), None
    with contextlib.suppress(OSError):
        key = None if folder is None else _read_key(folder)
    if key is None or sidecar.seal is None:
        return False
    return hmac.compare_digest(sidecar.seal.encode(), _hash(sidecar, key).encode())


def _hash(sidecar: EngineSidecar, key: bytes) -> str:
    said = sidecar.to_dict()
    said.pop("seal", None)
    content = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def _read_key(folder: Path) -> bytes | None:
    try:
        key = (folder / "engines.key").read_bytes()
    except FileNotFoundError:
        return None
    return key if len(key) >= _KEY_BYTES else None


def _make_key(folder: Path) -> bytes:
    """Write a key that only the user can read; if another process was faster, take its key."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "engines.key"
    beside = folder / f".engines.key.{os.getpid()}"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(_KEY_BYTES))
        os.fsync(descriptor)
        if path.exists() and _read_key(folder) is None:
            path.unlink()  # damaged
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
    finally:
        os.close(descriptor)
        beside.unlink()
    key = _read_key(folder)
    if key is None:
        raise OSError(f"{path} is damaged; remove it")
    return key
