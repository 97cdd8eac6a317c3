"""wenet-conformer and wenet-u2pp: WeNet's Conformer with full context, and U2++ with chunks, streamed too.

    git clone https://github.com/wenet-e2e/wenet && git -C wenet checkout 015469960d
    pip install torchaudio==2.11.0 librosa langid
    cd scripts && PYTHONPATH=../wenet python -m golden.make.wenet_conformer ../tests/data/golden

Cut from final.pt: the tables of positions of encoder and decoders (`*.pe`, 5000 rows each), which are
computed, not trained, and which loaders skip. WeNet itself reads such a file.
"""

from __future__ import annotations

import json
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from golden.make.common import (
    BATCH_ORDER,
    Fixture,
    center_head,
    clips,
    collapsed,
    main,
    original,
    padded,
    randomize,
    start,
)

UNITS = ["<blank>", "<unk>", "<sos/eos>", *"▁ETAOINSHRDLUMCWFGYPBVKXJQZ'"]
SPECIAL_TOKENS = {"<blank>": 0, "<unk>": 1, "<sos>": 2, "<eos>": 2}
FBANK = {"num_mel_bins": 80, "frame_length": 25, "frame_shift": 10, "dither": 0.0}
ENCODER = {
    "activation_type": "swish",
    "attention_heads": 4,
    "attention_dropout_rate": 0.0,
    "dropout_rate": 0.1,
    "input_layer": "conv2d",
    "linear_units": 64,
    "normalize_before": True,
    "num_blocks": 2,
    "pos_enc_layer_type": "rel_pos",
    "positional_dropout_rate": 0.1,
    "selfattention_layer_type": "rel_selfattn",
    "use_cnn_module": True,
}
DECODER = {
    "attention_heads": 2,
    "linear_units": 8,
    "num_blocks": 1,
    "dropout_rate": 0.1,
    "positional_dropout_rate": 0.1,
    "self_attention_dropout_rate": 0.0,
    "src_attention_dropout_rate": 0.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "conformer": {
        "seed": 41,
        "encoder": {**ENCODER, "output_size": 24, "cnn_module_kernel": 31},
        "decoder": ("transformer", DECODER),
    },
    "u2pp": {
        "seed": 42,
        "encoder": {
            **ENCODER,
            "output_size": 32,
            "cnn_module_kernel": 15,
            "causal": True,
            "cnn_module_norm": "layer_norm",
            "use_dynamic_chunk": True,
            "use_dynamic_left_chunk": False,
        },
        "decoder": ("bitransformer", {**DECODER, "r_num_blocks": 1}),
    },
}
#: Chunk and left chunks (-1: all) that U2++ is streamed with, on the last clip.
STREAMS = ((16, -1), (16, 2))


def prepare_imports() -> None:
    """Put back what WeNet at that commit expects of older packages; leave Whisper's tokenizer out."""
    conv: Any = torch.nn.modules.conv
    conv.Union, conv.Optional = typing.Union, typing.Optional  # torch 2.13 no longer leaks them
    whisper, tokenizer = ModuleType("whisper"), ModuleType("whisper.tokenizer")
    values: Any = tokenizer
    values.get_tokenizer, values.LANGUAGES = None, {}
    sys.modules |= {"whisper": whisper, "whisper.tokenizer": tokenizer}


def make(root: Path) -> None:
    """Both models."""
    prepare_imports()
    for variant, settings in VARIANTS.items():
        make_one(root, variant, **settings)


def make_one(
    root: Path, variant: str, *, seed: int, encoder: dict[str, Any], decoder: tuple[str, dict[str, Any]]
) -> None:
    """Build, save, load again, run."""
    fbank = original("wenet.dataset.processor").compute_fbank
    folder = start(root / f"wenet-{variant}")
    features: list[Tensor] = []
    for waveform in clips(root):
        wave = torch.from_numpy(waveform)[None]
        features.append(fbank({"key": "clip", "wav": wave, "sample_rate": 16_000}, **FBANK)["feat"])
    write_cmvn(folder / "global_cmvn", torch.cat(features))
    (folder / "units.txt").write_text("".join(f"{unit} {i}\n" for i, unit in enumerate(UNITS)))
    write_config(folder / "train.yaml", encoder, decoder)
    model = build(folder, encoder, decoder)
    randomize(model, seed)
    restore_cmvn(model, folder)
    center_head(model.ctc.ctc_lo, [encode(model, f[None], torch.tensor([len(f)]))[0] for f in features])
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith(".pe")}
    torch.save(weights, folder / "final.pt")
    model = build(folder, encoder, decoder)
    missing = model.load_state_dict(torch.load(folder / "final.pt", weights_only=True), strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith(".pe") for key in missing.missing_keys)
    fixture = Fixture(
        family="wenet", variant=variant, seed=seed, blank=0, source="wenet at 015469960d, ASRModel"
    )
    for i, clip in enumerate(features):
        encoded, lens = encode(model, clip[None], torch.tensor([len(clip)]))
        fixture.add_clip(i, clip[None], len(clip), model.ctc.log_softmax(encoded), lens[0])
    encoded, lens = encode(model, *padded([features[i].numpy() for i in BATCH_ORDER]))
    fixture.add_batch(model.ctc.log_softmax(encoded), lens)
    if encoder.get("use_dynamic_chunk"):
        steps = {}
        for chunk, left in STREAMS:
            name = f"stream_{chunk}_{'all' if left < 0 else left}"
            steps[name] = stream(fixture, model, features[-1], name, chunk, left)
        fixture.info["results"]["streaming_clip2"] = steps
    fixture.info["hyper"] = {"encoder": encoder, "decoder": decoder, "fbank": FBANK}
    fixture.info["cut"] = "the tables of positions (*.pe) are not in final.pt"
    if variant != "conformer":
        fixture.share_features(folder, "wenet-conformer")
    fixture.write(folder, ["torchaudio", "librosa"])


def write_cmvn(path: Path, frames: Tensor) -> None:
    """Sums over the clips' frames, as WeNet's tools/compute_cmvn_stats.py has them."""
    frames = frames.double()
    values = {
        "mean_stat": frames.sum(0).tolist(),
        "var_stat": frames.square().sum(0).tolist(),
        "frame_num": len(frames),
    }
    path.write_text(json.dumps(values))


def write_config(
    path: Path, encoder: dict[str, Any], decoder: tuple[str, dict[str, Any]], **changes: Any
) -> None:
    """train.yaml: what WeNet's training writes, in JSON's part of YAML."""
    config = {
        "cmvn": "global_cmvn",
        "cmvn_conf": {"cmvn_file": "data/train_960/global_cmvn", "is_json_cmvn": True},
        "ctc": "ctc",
        "ctc_conf": {"ctc_blank_id": 0},
        "dataset": "asr",
        # Dither 1.0 as recipes have it; WeNet's recognize.py sets it to 0, as here.
        "dataset_conf": {"fbank_conf": {**FBANK, "dither": 1.0}, "resample_conf": {"resample_rate": 16_000}},
        "decoder": decoder[0],
        "decoder_conf": decoder[1],
        "encoder": "conformer",
        "encoder_conf": encoder,
        "input_dim": 80,
        "model": "asr_model",
        "model_conf": {"ctc_weight": 0.3, "length_normalized_loss": False, "lsm_weight": 0.1},
        "output_dim": len(UNITS),
        "tokenizer": "char",
        "tokenizer_conf": {
            "special_tokens": SPECIAL_TOKENS,
            "split_with_space": False,
            "symbol_table_path": "data/dict/units.txt",
        },
    }
    path.write_text(json.dumps({**config, **changes}, indent=1) + "\n")


def build(
    folder: Path,
    encoder: dict[str, Any],
    decoder: tuple[str, dict[str, Any]],
    special_tokens: dict[str, int] | None = SPECIAL_TOKENS,
) -> Any:
    """The model as wenet/utils/init_model.py builds it, in eval mode."""
    transformer = "wenet.models.transformer"
    mean, istd = original("wenet.utils.cmvn").load_cmvn(str(folder / "global_cmvn"), True)
    cmvn = original(f"{transformer}.cmvn").GlobalCMVN(
        torch.from_numpy(mean).float(), torch.from_numpy(istd).float()
    )
    network = original(f"{transformer}.encoder").ConformerEncoder(80, global_cmvn=cmvn, **encoder)
    decoders = original(f"{transformer}.decoder")
    kind = {"transformer": "TransformerDecoder", "bitransformer": "BiTransformerDecoder"}[decoder[0]]
    return (
        original(f"{transformer}.asr_model")
        .ASRModel(
            vocab_size=len(UNITS),
            encoder=network,
            decoder=getattr(decoders, kind)(len(UNITS), network.output_size(), **decoder[1]),
            ctc=original(f"{transformer}.ctc").CTC(len(UNITS), network.output_size(), blank_id=0),
            special_tokens=special_tokens,
        )
        .eval()
    )


def restore_cmvn(model: Any, folder: Path) -> None:
    """Keep mean and 1 / deviation where they belong, should they ever become parameters."""
    mean, istd = original("wenet.utils.cmvn").load_cmvn(str(folder / "global_cmvn"), True)
    assert torch.equal(model.encoder.global_cmvn.mean, torch.from_numpy(mean).float())
    assert torch.equal(model.encoder.global_cmvn.istd, torch.from_numpy(istd).float())


def encode(
    model: Any, batch: Tensor, lens: Tensor, chunk: int = -1, left: int = -1
) -> tuple[Tensor, list[int]]:
    """Encoder output [B, T', D] and valid frames; full context, or chunk masks (wenet/bin/recognize.py)."""
    encoded, mask = model.encoder(batch, lens, decoding_chunk_size=chunk, num_decoding_left_chunks=left)
    return encoded, mask.squeeze(1).sum(-1).tolist()


def stream(fixture: Fixture, model: Any, clip: Tensor, name: str, chunk: int, left: int) -> dict[str, Any]:
    """Chunk by chunk with caches, as `forward_chunk_by_chunk` does, and at once under the same mask."""
    shift = 4 * chunk
    window = 4 * (chunk - 1) + 7
    required = chunk * left if left >= 0 else -1
    attention = convolution = torch.zeros(0, 0, 0, 0)
    offset = 0
    steps: list[dict[str, int]] = []
    outputs: list[Tensor] = []
    for first in range(0, len(clip) - 6, shift):
        last = min(first + window, len(clip))
        encoded, attention, convolution = model.encoder.forward_chunk(
            clip[None, first:last], offset, required, attention, convolution
        )
        offset += encoded.shape[1]
        outputs.append(model.ctc.log_softmax(encoded)[0])
        fixture.add(f"{name}_logp{len(steps)}", outputs[-1])
        steps.append({"feat_start": first, "feat_end": last})
    fixture.add(f"{name}_ids", collapsed(torch.cat(outputs).numpy(), 0))
    fixture.add(f"{name}_cnn_cache_last", convolution.squeeze(1))
    masked = model.ctc.log_softmax(encode(model, clip[None], torch.tensor([len(clip)]), chunk, left)[0])[0]
    fixture.add(f"{name}_masked_logp", masked)
    difference = float((torch.cat(outputs) - masked).abs().max())
    assert difference < 1e-4, f"{name}: WeNet's own streaming is {difference} off its masked pass"
    return {"chunk": chunk, "left_chunks": left, "steps": steps}


if __name__ == "__main__":
    main(make)
