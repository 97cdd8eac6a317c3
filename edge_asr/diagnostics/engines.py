"""Checks the TensorRT engines of a bundle: which fit this device, and why the others do not.

What this file does not do: load a plan (the runtime does, after the same comparison).
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_asr.diagnostics.check import Check
from edge_asr.diagnostics.tensorrt import TensorRTState
from edge_asr.errors import EdgeAsrError


def check_engines(model: str | None, libraries: Sequence[TensorRTState]) -> list[Check]:
    """Return one line for each precision with an engine in the bundle; none if no TensorRT works.

    Args:
        model: folder of a bundle or name of an embedded model; None for the default one.
        libraries: the flavors that work here.
    """
    if not libraries:
        return []
    from edge_asr.bundle.folder import DEFAULT_MODEL, Bundle
    from edge_asr.bundle.manifest import PRECISIONS
    from edge_asr.bundle.names import ENGINES_FOLDER
    from edge_asr.runtime.engine.lookup import GRAPHS, build_command, check_trust, find_engine
    from edge_asr.runtime.engine.sidecar import DeviceIdentity

    try:
        # check_model checks the hashes.
        bundle = Bundle.load(DEFAULT_MODEL if model is None else model, check_hashes=False)
    except (EdgeAsrError, OSError):
        return []  # check_model has reported it
    checks = []
    device = DeviceIdentity.detect()
    for graph, precision in ((graph, precision) for graph in GRAPHS for precision in PRECISIONS):
        if not any((bundle.path / ENGINES_FOLDER).glob(f"[!.]*/{graph}.{precision}.json")):
            continue
        name = f"engine {precision}" if graph == "model" else f"engine {graph} {precision}"
        refusals = []
        for library in libraries:
            try:
                path, sidecar = find_engine(
                    bundle,
                    precision,
                    flavor=library.flavor,
                    tensorrt_version=library.version,
                    device=device,
                    graph=graph,
                )
                if sidecar.proven:
                    check_trust(bundle, path, sidecar)
            except EdgeAsrError as error:
                refusals.append(str(error))
                continue
            proof = "proven" if sidecar.proven else "not proven: it was built without a device to run on"
            detail = f"{path.parent.name}, {proof}"
            checks.append(Check(name=name, status="ok", detail=detail))
            break
        else:
            if refusals:
                command = build_command(bundle, precision, libraries[0].flavor, force=True)
                checks.append(Check(name=name, status="missing", detail=refusals[0], fix=command))
    return checks
