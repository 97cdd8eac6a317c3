"""The result of one engine build, for the command line, for `--json` and for the report of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_asr.runtime.engine.sidecar import EngineSidecar


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """Result of `build_engine`.

    Attributes:
        plan: path of the plan; its sidecar lies beside it.
        sidecar: content of the sidecar, proof included.
        notes: sentences that the user should read, such as why there was no proof.
    """

    plan: Path
    sidecar: EngineSidecar
    notes: tuple[str, ...]

    @property
    def proven(self) -> bool:
        """Tell whether the engine ran on its device and passed."""
        return self.sidecar.proven

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: path, notes, and the sidecar under its own keys."""
        return {"plan": str(self.plan), **self.sidecar.to_dict(), "notes": list(self.notes)}

    def describe(self) -> str:
        """Describe the engine in one line for people."""
        sidecar = self.sidecar
        size_mb = sidecar.plan_size_bytes / 1e6
        proof = sidecar.proof
        if proof is None:
            verdict = "not proven"
        else:
            verdict = f"proven: {proof['n_cases']} cases, {proof['frame_agreement']:.4f} of frames agree"
        return (
            f"{self.plan}: {sidecar.precision}, {size_mb:.1f} MB, {len(sidecar.profiles)} profiles, "
            f"{sidecar.build_time_s:.1f} s, {verdict}"
        )
