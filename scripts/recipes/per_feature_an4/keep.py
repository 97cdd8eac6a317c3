"""Keep the small per-feature model for the tests: runs/per_feature_an4/best -> tests/data/per_feature_an4.

Stores the weights as float16 and refuses more than 1.5 MB. It does not train (train.yaml does).
"""

from __future__ import annotations

from pathlib import Path

from edge_asr.checkpoints import load_checkpoint, save_checkpoint

REPOSITORY = Path(__file__).resolve().parents[3]
MAX_BYTES = 1_500_000


def main() -> None:
    """Write the float16 checkpoint and print its size and the WER it reached."""
    best = load_checkpoint(REPOSITORY / "runs" / "per_feature_an4" / "best")
    kept = save_checkpoint(
        REPOSITORY / "tests" / "data" / "per_feature_an4",
        best.build_model(),
        best.features,
        best.vocabulary,
        {**best.provenance, "recipe": "scripts/recipes/per_feature_an4", "trained_on": "an4_train (CMU AN4)"},
        dtype="float16",
        facts=best.facts,
    )
    n_bytes = sum(file.stat().st_size for file in kept.iterdir())
    if n_bytes > MAX_BYTES:
        raise SystemExit(f"{kept} has {n_bytes} bytes, more than {MAX_BYTES}; use a smaller d_model")
    print(f"{kept.relative_to(REPOSITORY)}: {n_bytes} bytes, dev {best.provenance.get('dev')}")


if __name__ == "__main__":
    main()
