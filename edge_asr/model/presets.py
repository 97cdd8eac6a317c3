"""Named shapes of a Conformer-CTC: fields of `ConformerConfig` that differ from their defaults."""

from __future__ import annotations

from typing import Any

_NEMO: dict[str, Any] = {
    "subsampling": "striding",
    "subsampling_factor": 4,
    "conv_kernel_size": 31,
    "xscaling": True,
}
_PAPER: dict[str, Any] = {**_NEMO, "xscaling": False}

# small/medium/large: NeMo examples/asr/conf/conformer/conformer_ctc_bpe.yaml.
# paper-*: Gulati et al. 2020, table 1; its kernel of 32 is even, hence not centered, so 31 stands for it.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "d_model": 128,
        "n_layers": 8,
        "n_heads": 4,
        "conv_kernel_size": 15,
        "conv_context": "causal",
        "subsampling": "dw_striding",
        "subsampling_factor": 4,
        "subsampling_channels": 48,
        "cmvn": True,
    },
    # The plain Transformer encoder: two convolutions by 2, sinusoids, four blocks.
    "transformer": {
        "encoder": "transformer",
        "d_model": 200,
        "n_layers": 4,
        "n_heads": 2,
        "ff_expansion": 2,
        "activation": "gelu",
        "subsampling": "conv1d",
        "subsampling_factor": 2,
        "attention": "no_pos",
        "added_positions": True,
        "cmvn": True,
    },
    "small": {**_NEMO, "d_model": 176, "n_layers": 16, "n_heads": 4, "subsampling_channels": 176},
    "medium": {**_NEMO, "d_model": 256, "n_layers": 18, "n_heads": 4, "subsampling_channels": 256},
    "large": {**_NEMO, "d_model": 512, "n_layers": 18, "n_heads": 8, "subsampling_channels": 512},
    "paper-s": {**_PAPER, "d_model": 144, "n_layers": 16, "n_heads": 4, "subsampling_channels": 144},
    "paper-m": {**_PAPER, "d_model": 256, "n_layers": 16, "n_heads": 4, "subsampling_channels": 256},
    "paper-l": {**_PAPER, "d_model": 512, "n_layers": 17, "n_heads": 8, "subsampling_channels": 512},
}
