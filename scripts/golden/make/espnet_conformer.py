"""espnet-conformer and -legacy: ESPnet2's ASR model with both kinds of relative positions, packed.

    pip install espnet==202511
    cd scripts && python -m golden.make.espnet_conformer ../tests/data/golden

The network is built from the classes that espnet2/tasks/asr.py chooses for this config.yaml; the task itself
imports every recipe's dependencies and is not needed. config.yaml holds the keys that say something of the
network, written by hand; the keys of training (hundreds) are left out.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from golden.make.common import (
    BATCH_ORDER,
    Fixture,
    center_head,
    clips,
    main,
    original,
    padded,
    randomize,
    start,
    train_sentencepiece,
)

EXPERIMENT = "exp/asr_train_asr_conformer_raw_en_bpe44"
STATISTICS = "exp/asr_stats_raw_en_bpe44/train/feats_stats.npz"
TOKENS = "data/en_token_list/bpe_unigram44"
ENCODER = {
    "input_layer": "conv2d",
    "normalize_before": True,
    "macaron_style": True,
    "pos_enc_layer_type": "rel_pos",
    "selfattention_layer_type": "rel_selfattn",
    "activation_type": "swish",
    "use_cnn_module": True,
    "output_size": 24,
    "attention_heads": 4,
    "linear_units": 48,
    "num_blocks": 2,
    "cnn_module_kernel": 31,
    "dropout_rate": 0.1,
    "positional_dropout_rate": 0.1,
    "attention_dropout_rate": 0.1,
}
DECODER = {"attention_heads": 2, "linear_units": 8, "num_blocks": 1}
#: `rel_pos_type` absent means legacy: most published models are so, and only config.yaml tells.
VARIANTS: dict[str, dict[str, Any]] = {
    "conformer": {
        "seed": 61,
        "frontend": {"fs": "16k", "n_fft": 512, "hop_length": 160},
        "normalize": "global_mvn",
        "encoder": {**ENCODER, "rel_pos_type": "latest"},
    },
    "conformer-legacy": {
        "seed": 62,
        "frontend": {"fs": "16k", "n_fft": 512, "hop_length": 128},
        "normalize": "utterance_mvn",
        "encoder": ENCODER,
    },
}


def make(root: Path) -> None:
    """Both kinds of positions."""
    for variant, settings in VARIANTS.items():
        make_one(root, variant, **settings)


def make_one(
    root: Path, variant: str, *, seed: int, frontend: dict[str, Any], normalize: str, encoder: dict[str, Any]
) -> None:
    """Build, save, load again, run."""
    folder = start(root / f"espnet-{variant}")
    for name in (EXPERIMENT, TOKENS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tokens = write_tokens(folder / TOKENS)
    waveforms = clips(root)
    front_end = original("espnet2.asr.frontend.default").DefaultFrontend(**frontend).eval()
    raw = [front_end(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))[0][0] for clip in waveforms]
    if normalize == "global_mvn":
        write_statistics(folder / STATISTICS, torch.cat(raw))
    write_config(folder, tokens, frontend, normalize, encoder, DECODER)
    weights = folder / EXPERIMENT / "valid.acc.ave.pth"
    write_meta(folder)
    model = build(folder, tokens, frontend, normalize, encoder)
    randomize(model, seed)
    center_head(model.ctc.ctc_lo, [encode(model, *padded([clip]))[2] for clip in waveforms])
    torch.save(model.state_dict(), weights)
    model = build(folder, tokens, frontend, normalize, encoder)
    model.load_state_dict(torch.load(weights, weights_only=True))
    fixture = Fixture(
        family="espnet", variant=variant, seed=seed, blank=0, source="espnet 202511, ESPnetASRModel"
    )
    for i, clip in enumerate(waveforms):
        features, feature_lens, encoded, lens = encode(model, *padded([clip]))
        fixture.add_clip(i, features, int(feature_lens[0]), model.ctc.log_softmax(encoded), lens[0])
    *_, encoded, lens = encode(model, *padded([waveforms[i] for i in BATCH_ORDER]))
    fixture.add_batch(model.ctc.log_softmax(encoded), lens)
    fixture.info["hyper"] = {"encoder": encoder, "frontend": frontend, "normalize": normalize}
    fixture.write(folder, ["espnet", "sentencepiece"])


def write_config(
    folder: Path,
    tokens: list[str],
    frontend: dict[str, Any],
    normalize: str,
    encoder: dict[str, Any],
    decoder: dict[str, Any],
) -> None:
    """config.yaml: the keys of ESPnet's training that say something of the network."""
    config = {
        "model": "espnet",
        "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1, "length_normalized_loss": False},
        "token_type": "bpe",
        "bpemodel": f"{TOKENS}/bpe.model",
        "token_list": tokens,
        "init": None,
        "input_size": None,
        "ctc_conf": {"dropout_rate": 0.0, "ctc_type": "builtin", "reduce": True},
        "use_preprocessor": True,
        "frontend": "default",
        "frontend_conf": frontend,
        "specaug": None,
        "specaug_conf": {},
        "normalize": normalize,
        "normalize_conf": {"stats_file": STATISTICS} if normalize == "global_mvn" else {},
        "preencoder": None,
        "preencoder_conf": {},
        "encoder": "conformer",
        "encoder_conf": encoder,
        "postencoder": None,
        "postencoder_conf": {},
        "decoder": "transformer",
        "decoder_conf": decoder,
        "version": "202511",
    }
    (folder / EXPERIMENT / "config.yaml").write_text(
        yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    )


def write_tokens(folder: Path) -> list[str]:
    """bpe.model and tokens.txt as ESPnet's recipes leave them; the token list."""
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copy(train_sentencepiece(Path(temporary), 44), folder / "bpe.model")
        lines = (Path(temporary) / "tokenizer.vocab").read_text().splitlines()
    pieces = [line.split("\t")[0] for line in lines]
    tokens = ["<blank>", "<unk>", *(p for p in pieces if p not in ("<unk>", "<s>", "</s>")), "<sos/eos>"]
    (folder / "tokens.txt").write_text("".join(f"{token}\n" for token in tokens))
    return tokens


def write_statistics(path: Path, frames: Tensor) -> None:
    """Sums over the clips' frames, as collect_stats has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = frames.numpy()
    np.savez(path, count=len(values), sum=values.sum(0), sum_square=np.square(values).sum(0))


def write_meta(folder: Path) -> None:
    """meta.yaml of a packed model."""
    meta = {
        "espnet": "202511",
        "files": {"asr_model_file": f"{EXPERIMENT}/valid.acc.ave.pth"},
        "yaml_files": {"asr_train_config": f"{EXPERIMENT}/config.yaml"},
        "torch": str(torch.__version__),
    }
    (folder / "meta.yaml").write_text(yaml.safe_dump(meta))


def build(
    folder: Path,
    tokens: list[str],
    frontend: dict[str, Any],
    normalize: str,
    encoder: dict[str, Any],
    decoder: dict[str, Any] = DECODER,
) -> Any:
    """The model that espnet2/tasks/asr.py builds of the configuration, in eval mode."""
    asr = "espnet2.asr"
    front_end = original(f"{asr}.frontend.default").DefaultFrontend(**frontend)
    if normalize == "global_mvn":
        normalization = original("espnet2.layers.global_mvn").GlobalMVN(str(folder / STATISTICS))
    else:
        normalization = original("espnet2.layers.utterance_mvn").UtteranceMVN()
    network = original(f"{asr}.encoder.conformer_encoder").ConformerEncoder(
        front_end.output_size(), **encoder
    )
    width = network.output_size()
    return (
        original(f"{asr}.espnet_model")
        .ESPnetASRModel(
            vocab_size=len(tokens),
            token_list=tokens,
            frontend=front_end,
            specaug=None,
            normalize=normalization,
            preencoder=None,
            encoder=network,
            postencoder=None,
            decoder=original(f"{asr}.decoder.transformer_decoder").TransformerDecoder(
                len(tokens), width, **decoder
            ),
            ctc=original(f"{asr}.ctc").CTC(len(tokens), width),
            joint_network=None,
            ctc_weight=0.3,
        )
        .eval()
    )


def encode(model: Any, batch: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Normalized features and lengths, encoder output [B, T', D] and valid frames."""
    features, feature_lens = model.frontend(batch, lens)
    features, feature_lens = model.normalize(features, feature_lens)
    encoded, out_lens, _ = model.encoder(features, feature_lens)
    return features, feature_lens, encoded, out_lens.tolist()


if __name__ == "__main__":
    main(make)
