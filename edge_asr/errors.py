"""Every error that edge-asr raises on purpose, and the helper that names a missing extra.

Each error is an `EdgeAsrError` and also the built-in error that a caller would expect, so both
`except EdgeAsrError` and `except ValueError` work. The message says what is wrong, the value
seen, and how to fix it. The command line prints it as one line and exits with 1 (3 for
`GateError`).
What this file does not do: wrap errors that are bugs, which keep their traceback.

    EdgeAsrError
    |-- AudioError (ValueError)               a waveform or sound file that cannot be used
    |-- ConfigError (ValueError)              a configuration value or key
    |-- ManifestError (ValueError)            a manifest or one of its rows
    |-- VocabularyError (ValueError)          tokens, blank, text outside the vocabulary
    |-- GrammarError (ValueError)             a grammar that cannot be read, compiled or spelled
    |-- LanguageModelError (ValueError)       a language model that cannot be read or built
    |-- CheckpointError (ValueError)          a checkpoint that cannot be read
    |-- BundleError (ValueError)              a bundle that is incomplete, altered or unverified
    |-- MissingDependencyError (ImportError)  an optional package that is not installed
    |-- BackendError (RuntimeError)           an inference backend that cannot be had or failed
    |   `-- EngineError                       a TensorRT engine that is missing, damaged or for elsewhere
    |-- RefusedError (RuntimeError)           a session or request that a server refuses or ends
    |-- TrainingError (RuntimeError)          training that cannot start, go on or resume
    |-- GateError (RuntimeError)              an artifact that failed its proof
    `-- DeviceError (OSError)                 a microphone or accelerator
"""

from __future__ import annotations

import importlib
from types import ModuleType


class EdgeAsrError(Exception):
    """Base of every error that edge-asr raises on purpose."""


class AudioError(EdgeAsrError, ValueError):
    """A waveform or sound file that cannot be used."""


class ConfigError(EdgeAsrError, ValueError):
    """A configuration value out of range, or an unknown key."""


class ManifestError(EdgeAsrError, ValueError):
    """A manifest, or a row of one, that cannot be used."""


class VocabularyError(EdgeAsrError, ValueError):
    """Tokens that contradict each other, or text the vocabulary cannot spell."""


class GrammarError(EdgeAsrError, ValueError):
    """A grammar that cannot be read, contradicts itself, or has words that the vocabulary cannot spell."""


class LanguageModelError(EdgeAsrError, ValueError):
    """A language model that is damaged or of an unknown format, or text that none can be built from."""


class CheckpointError(EdgeAsrError, ValueError):
    """A checkpoint that is incomplete, unknown or contradicts its configuration."""


class BundleError(EdgeAsrError, ValueError):
    """A bundle that is incomplete, altered, unverified or of an unknown format."""


class MissingDependencyError(EdgeAsrError, ImportError):
    """An optional package that this call needs is not installed."""


class BackendError(EdgeAsrError, RuntimeError):
    """An inference backend that is not available here, or whose run failed."""


class EngineError(BackendError):
    """A TensorRT engine that is missing, damaged, unproven or built for something else."""


class RefusedError(EdgeAsrError, RuntimeError):
    """A session or a request that a server refuses or ends.

    Args:
        reason: one word, such as "busy"; `edge_asr.serving.limits` lists them.
        message: one sentence.
        is_counted: whether the server's observer has been told, so that no one is counted twice.
    """

    def __init__(self, reason: str, message: str, *, is_counted: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_counted = is_counted


class TrainingError(EdgeAsrError, RuntimeError):
    """Training that cannot start, continue or resume."""


class GateError(EdgeAsrError, RuntimeError):
    """An artifact failed its proof; nothing was shipped."""


class DeviceError(EdgeAsrError, OSError):
    """A microphone or accelerator that is missing, busy or refuses the request."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra of edge-asr brings it.

    Raises:
        MissingDependencyError: the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is needed here and could not be imported ({error}); "
            f"install it with: pip install 'edge-asr[{extra}]'"
        ) from error
