"""Workers in a Ray cluster: one that runs already, or one of this machine that lives as long as the program.

Ray's usage statistics are off, and a cluster of this machine listens on 127.0.0.1 alone, asks for a token,
and has no dashboard. Where a cluster runs already, who started it has decided about these.
What this file does not do: decide what workers do (driver.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from edge_asr.cluster.driver import Outcome
from edge_asr.cluster.ledger import Shard
from edge_asr.cluster.worker import ShardWorker, WorkerSettings
from edge_asr.errors import BackendError, EdgeAsrError, require

_log = logging.getLogger(__name__)

LOCAL = "local"
_GPU_BACKENDS = ("cuda", "tensorrt", "tensorrt-rtx")
_STARTS = 3
"""Ray (2.60) gives its own processes 30 s to start, which a busy machine can exceed."""
_STORE_BYTES = 100 << 20
"""Ray's shared memory; only names and counts pass through it."""


def import_ray(address: str) -> ModuleType:
    """Import Ray for a cluster; what it reads of the environment when it is imported is set before.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address == LOCAL:
        # Else it would listen at the address that other machines see, even if it is told 127.0.0.1.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # none is left in the home folder
    return require("ray", extra="ray")


@contextlib.contextmanager
def ray_session(address: str, *, num_cpus: int | None = None) -> Iterator[ModuleType]:
    """Connect to the cluster at `address`, or start one here for "local"; gives the module `ray`.

    Args:
        address: "local", "auto", HOST:PORT or ray://HOST:PORT.
        num_cpus: of a local one; None is what the machine has.

    Raises:
        MissingDependencyError: Ray is not installed.
        BackendError: it cannot be reached, or does not start.
    """
    ray = import_ray(address)
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"address": address}
        if address == LOCAL:
            # The names of its sockets have room for a short folder only.
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="ea-ray-", dir="/tmp", ignore_cleanup_errors=True)
            )
            options = {"num_cpus": num_cpus, "object_store_memory": _STORE_BYTES, "_temp_dir": folder}
            options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        stack.callback(ray.shutdown)
        for attempt in range(_STARTS):
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
                break
            except Exception as error:  # Ray raises no narrower one
                reason = " ".join(str(error).split())[:300].rstrip(".")
                _log.info("Ray did not start: %s", reason)
                ray.shutdown()
                if address != LOCAL:
                    raise BackendError(
                        f"no Ray cluster at {address}: {reason}; give the address with which `ray status` "
                        "works, or local"
                    ) from error
                if attempt == _STARTS - 1:
                    raise BackendError(
                        f"Ray did not start here in {_STARTS} attempts: {reason}; try again when the machine "
                        "is less busy"
                    ) from error
        yield ray


def count_workers(ray: ModuleType, backend: str, threads: int) -> tuple[int, int]:
    """Return how many workers the cluster has room for, and the GPUs of each.

    A worker has a GPU if the backend is for one, or "auto" and the cluster has any.
    """
    resources = ray.cluster_resources()
    n_gpus = int(resources.get("GPU", 0))
    if backend in _GPU_BACKENDS or (backend == "auto" and n_gpus):
        return max(1, n_gpus), 1
    return max(1, int(resources.get("CPU", 1)) // threads), 0


class RayPool:
    """Actors of Ray as workers; a `Pool`."""

    def __init__(
        self, ray: ModuleType, settings: WorkerSettings, *, n_workers: int, num_gpus: int = 0
    ) -> None:
        self._ray = ray
        self.n_workers = n_workers
        self._actor_class = ray.remote(ShardWorker).options(
            num_cpus=settings.threads, num_gpus=num_gpus, max_restarts=0, max_task_retries=0
        )
        self._settings = ray.put(settings)
        self._waiting: dict[Any, tuple[Any, Shard | None]] = {}
        self._idle: list[Any] = []
        for _ in range(n_workers):
            self._start()

    def _start(self) -> None:
        actor = self._actor_class.remote(self._settings)
        # It gets work once it answers: one that the cluster has no room for must hold no shard.
        self._waiting[actor.ready.remote()] = (actor, None)

    @property
    def n_free(self) -> int:
        """See `Pool`."""
        return len(self._idle)

    def submit(self, shard: Shard, name: str) -> None:
        """See `Pool`."""
        actor = self._idle.pop()
        self._waiting[actor.run.remote(shard, name)] = (actor, shard)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """See `Pool`."""
        ready, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self._ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
        return [outcome for outcome in map(self._finish, ready) if outcome is not None]

    def _finish(self, reference: Any) -> Outcome | None:
        actor, shard = self._waiting.pop(reference)
        errors = self._ray.exceptions
        try:
            value = self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, (EdgeAsrError, OSError)):
                raise cause from error
            reason = repr(cause)
        except errors.RayError as error:
            reason = " ".join(str(error).split())[:300]
        else:
            self._idle.append(actor)
            if shard is None:
                _log.info("a worker is ready: %s", value)
                return None
            return Outcome(shard, result=value)
        self._ray.kill(actor)
        self._start()
        return Outcome(shard, reason=reason)
