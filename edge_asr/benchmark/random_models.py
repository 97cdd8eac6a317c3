"""Makes bundles without trained weights: known shapes with random numbers, for speed and memory only.

The time of a pass depends on shapes, not on values, so a machine can be judged before there is a model for
it. Text and error rates of such a bundle mean nothing, and INT8 ranges come from nonsense. Needs the extra
`export`.

Sizes of other projects have 1024 pieces and the blank. Shapes: NeMo's examples/asr/conf,
conformer_ctc_bpe.yaml (Conformer-CTC small, medium, large) and fast-conformer_ctc_bpe.yaml (FastConformer
large, and XLarge, which is Parakeet 0.6B; transformers' ParakeetEncoderConfig has the same numbers).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.errors import ConfigError, require
from edge_asr.model.config import ConformerConfig
from edge_asr.model.presets import PRESETS
from edge_asr.proof.stages import StageProgress

N_PIECES = 128
N_PIECES_KNOWN = 1024
_FAST: dict[str, Any] = {
    "n_mels": 80,
    "conv_kernel_size": 9,
    "subsampling": "dw_striding",
    "subsampling_factor": 8,
    "subsampling_channels": 256,
}
KNOWN_SIZES: dict[str, dict[str, Any]] = {
    "conformer-ctc-s": PRESETS["small"],
    "conformer-ctc-m": PRESETS["medium"],
    "conformer-ctc-l": PRESETS["large"],
    "fastconformer-l": {**_FAST, "d_model": 512, "n_layers": 17, "n_heads": 8, "xscaling": True},
    "parakeet-ctc-0.6b": {**_FAST, "d_model": 1024, "n_layers": 24, "n_heads": 8, "xscaling": False},
}
NAMES = (*PRESETS, *KNOWN_SIZES)


def random_config(name: str) -> ConformerConfig:
    """Find the shape of a name: a preset (128 pieces) or a well-known size (1024 pieces).

    Raises:
        ConfigError: an unknown name.
    """
    if name in PRESETS:
        return ConformerConfig.from_preset(name, vocab_size=N_PIECES + 1)
    if name in KNOWN_SIZES:
        return ConformerConfig.from_dict(
            {"size": name, **KNOWN_SIZES[name], "vocab_size": N_PIECES_KNOWN + 1}
        )
    raise ConfigError(f"there is no random model {name!r}; known are {', '.join(NAMES)}")


def save_random(name: str, folder: Path, *, normalize: str = "none") -> Path:
    """Write a checkpoint of that shape with random weights (seed 0) to `folder`, with NeMo's features.

    Raises:
        ConfigError: an unknown name.
        MissingDependencyError: torch is not installed.
    """
    config = random_config(name)
    torch = require("torch", extra="export")
    from edge_asr.checkpoints import save_checkpoint
    from edge_asr.feature_config import FeatureConfig
    from edge_asr.model import ConformerCTC
    from edge_asr.vocabulary import Vocabulary

    torch.manual_seed(0)
    vocabulary = Vocabulary.from_characters(chr(0x4E00 + number) for number in range(config.vocab_size - 1))
    model = ConformerCTC(config).eval()
    features = FeatureConfig.from_preset("nemo", normalize=normalize)
    return save_checkpoint(folder, model, features, vocabulary, {"what": "random weights", "seed": 0})


def export_random(
    name: str,
    folder: Path,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    progress: StageProgress | None = None,
) -> Bundle:
    """Write a bundle of random weights below `folder`, proven against PyTorch; INT8 has no budget.

    Raises:
        ConfigError: an unknown name.
        MissingDependencyError: the extra `export` is not installed.
        GateError: the export failed its proof.
    """
    checkpoint = save_random(name, folder / "checkpoint")
    from edge_asr.calibration import Budget, Int8Options
    from edge_asr.export import CasePlan, export_bundle

    export_bundle(
        checkpoint,
        folder / f"random-{name}",
        precisions=tuple(dict.fromkeys(("fp32", *precisions))),
        int8=Int8Options(budget=Budget(max_wer_loss=1.0, min_agreement=0.0))
        if "int8" in precisions
        else None,
        plan=CasePlan(random_lengths=2, max_batch=2),
        progress=progress,
    )
    return Bundle.load(folder / f"random-{name}")
