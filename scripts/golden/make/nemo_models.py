"""nemo-*: Conformer and FastConformer CTC models of NVIDIA NeMo, saved by its own save_to, one streamed too.

pip install "nemo_toolkit[asr]==3.0.0"
cd scripts && python -m golden.make.nemo_models ../tests/data/golden
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.make.common import (
    BATCH_ORDER,
    CHARACTERS,
    Fixture,
    center_head,
    clips,
    collapsed,
    main,
    original,
    padded,
    randomize,
    start,
    train_sentencepiece,
)

#: Examples' configurations (examples/asr/conf), smaller.
ENCODER: dict[str, Any] = {
    "_target_": "nemo.collections.asr.modules.ConformerEncoder",
    "feat_in": 80,
    "feat_out": -1,
    "n_layers": 2,
    "d_model": 32,
    "ff_expansion_factor": 2,
    "n_heads": 4,
    "self_attention_model": "rel_pos",
    "att_context_size": [-1, -1],
    "att_context_style": "regular",
    "xscaling": True,
    "untie_biases": True,
    "pos_emb_max_len": 5000,
    "conv_norm_type": "batch_norm",
    "conv_context_size": None,
    "causal_downsampling": False,
    "dropout": 0.1,
    "dropout_pre_encoder": 0.1,
    "dropout_emb": 0.0,
    "dropout_att": 0.1,
}
CONFORMER = {
    **ENCODER,
    "subsampling": "striding",
    "subsampling_factor": 4,
    "subsampling_conv_channels": 16,
    "conv_kernel_size": 31,
}
FAST = {
    **ENCODER,
    "subsampling": "dw_striding",
    "subsampling_factor": 8,
    "subsampling_conv_channels": 24,
    "conv_kernel_size": 9,
}
LOCAL = {**FAST, "self_attention_model": "rel_pos_local_attn", "use_pytorch_sdpa": False}
STREAMING = {
    **FAST,
    "att_context_size": [7, 6],
    "att_context_style": "chunked_limited",
    "conv_norm_type": "layer_norm",
    "conv_context_size": "causal",
    "causal_downsampling": True,
}
#: Name: seed, size of the SentencePiece vocabulary (None: characters), encoder, normalization.
MODELS: dict[str, tuple[int, int | None, dict[str, Any], str]] = {
    "conformer-bpe": (51, 48, CONFORMER, "per_feature"),
    "conformer-char": (
        52,
        None,
        {**CONFORMER, "d_model": 24, "subsampling_conv_channels": -1},
        "per_feature",
    ),
    "fastconformer-bpe": (53, 48, FAST, "per_feature"),
    "fastconformer-local": (54, 40, {**LOCAL, "att_context_size": [8, 8]}, "per_feature"),
    "fastconformer-local-asym": (55, 40, {**LOCAL, "d_model": 24, "att_context_size": [6, 4]}, "per_feature"),
    "fastconformer-streaming": (56, 48, STREAMING, "NA"),
}
#: The fixture whose features the other per-feature ones share.
FEATURES_IN = "conformer-bpe"


def make(root: Path) -> None:
    """All models."""
    for variant, (seed, vocab_size, encoder, normalize) in MODELS.items():
        make_one(root, variant, seed, vocab_size, encoder, normalize)


def make_one(
    root: Path, variant: str, seed: int, vocab_size: int | None, encoder: dict[str, Any], normalize: str
) -> None:
    """Build, save, restore, run."""
    models = original("nemo.collections.asr").models
    folder = start(root / f"nemo-{variant}")
    preprocessor = {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": 16_000,
        "normalize": normalize,
        "window_size": 0.025,
        "window_stride": 0.01,
        "window": "hann",
        "features": 80,
        "n_fft": 512,
        "frame_splicing": 1,
        "dither": 1e-5,
        "pad_to": 0,
    }
    decoder: dict[str, Any] = {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
        "feat_in": encoder["d_model"],
        "num_classes": vocab_size or len(CHARACTERS),
        "vocabulary": [] if vocab_size else list(CHARACTERS),
    }
    config: dict[str, Any] = {
        "sample_rate": 16_000,
        "preprocessor": preprocessor,
        "encoder": encoder,
        "decoder": decoder,
        "optim": {"name": "adamw", "lr": 1e-3},
    }
    with tempfile.TemporaryDirectory() as temporary:
        if vocab_size:
            write_tokenizer(Path(temporary), vocab_size)
            config["tokenizer"] = {"dir": temporary, "type": "bpe"}
            model = models.EncDecCTCModelBPE(original("omegaconf").OmegaConf.create(config)).eval()
        else:
            config["labels"] = list(CHARACTERS)
            model = models.EncDecCTCModel(original("omegaconf").OmegaConf.create(config)).eval()
        randomize(model, seed)
        waveforms = clips(root)
        encoded = [encode(model, *features_of(model, [clip]))[0] for clip in waveforms]
        center_head(model.decoder.decoder_layers[0], encoded)
        model.save_to(str(folder / "model.nemo"))
    model = models.ASRModel.restore_from(str(folder / "model.nemo"), map_location="cpu").eval()
    blank = vocab_size or len(CHARACTERS)
    fixture = Fixture(
        family="nemo", variant=variant, seed=seed, blank=blank, source=f"nemo_toolkit, {type(model).__name__}"
    )
    for i, clip in enumerate(waveforms):
        features, feature_lens = features_of(model, [clip])
        rows, lens = encode(model, features, feature_lens)
        log_probs = decode(model, rows)
        fixture.add_clip(i, features.transpose(1, 2), int(feature_lens[0]), log_probs, lens[0])
        if i == 0 and "streaming" in variant:
            fixture.add("clip0_enc", rows)
            fixture.add("dbg_clip0_pre_encode", model.encoder.pre_encode(features.mT, feature_lens)[0][0])
    rows, lens = encode(model, *features_of(model, [waveforms[i] for i in BATCH_ORDER]))
    fixture.add_batch(decode(model, rows), lens)
    if "streaming" in variant:
        stream(fixture, model, waveforms[-1])
    fixture.info["hyper"] = {"preprocessor": preprocessor, "encoder": encoder, "vocabulary": vocab_size}
    if normalize == "per_feature" and variant != FEATURES_IN:
        fixture.share_features(folder, f"nemo-{FEATURES_IN}")
    fixture.write(folder, ["nemo_toolkit", "librosa", "sentencepiece", "omegaconf", "lightning"])


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """What NeMo's process_asr_text_tokenizer.py leaves in the tokenizer's folder."""
    train_sentencepiece(folder, vocab_size, bos_id=-1, eos_id=-1)
    pieces = [line.split("\t")[0] for line in (folder / "tokenizer.vocab").read_text().splitlines()]
    words = [piece[1:] if piece.startswith("▁") else f"##{piece}" for piece in pieces if piece != "<unk>"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words if word))


def features_of(model: Any, waveforms: list[Any]) -> tuple[Tensor, Tensor]:
    """NeMo's features [B, F, T] and their lengths; no dither in eval mode."""
    batch, lens = padded(waveforms)
    features, feature_lens = model.preprocessor(input_signal=batch, length=lens)
    return features, feature_lens


def encode(model: Any, features: Tensor, lens: Tensor) -> tuple[Tensor, list[int]]:
    """Encoder output [B, T', D] and valid frames."""
    encoded, out_lens = model.encoder(audio_signal=features, length=lens)
    return encoded.mT, out_lens.tolist()


def decode(model: Any, encoded: Tensor) -> Tensor:
    """Log-probs [B, T', V + 1]."""
    log_probs: Tensor = model.decoder(encoder_output=encoded.mT)
    return log_probs


def stream(fixture: Fixture, model: Any, clip: Any) -> None:
    """Cache-aware steps as NeMo's streaming script makes them, and the caches behind the last."""
    streaming = original("nemo.collections.asr.parts.utils.streaming_utils")
    buffer = streaming.CacheAwareStreamingAudioBuffer(model=model)
    features, _ = features_of(model, [clip])
    buffer.append_processed_signal(features, stream_id=-1)
    left, right = model.encoder.att_context_size
    name = f"stream_{left}_{right}"
    channel, time, channel_len = model.encoder.get_initial_cache_state(batch_size=1)
    outputs: list[Tensor] = []
    for number, (chunk, lens) in enumerate(buffer):
        fixture.add(f"{name}_chunk{number}", chunk[0].T)
        drop = model.encoder.streaming_cfg.drop_extra_pre_encoded if number else 0
        encoded, encoded_lens, channel, time, channel_len = model.encoder.cache_aware_stream_step(
            processed_signal=chunk,
            processed_signal_length=lens,
            cache_last_channel=channel,
            cache_last_time=time,
            cache_last_channel_len=channel_len,
            keep_all_outputs=buffer.is_buffer_empty(),
            drop_extra_pre_encoded=drop,
        )
        log_probs = decode(model, encoded.mT)[0, : int(encoded_lens[0])]
        fixture.add(f"{name}_logp{number}", log_probs)
        outputs.append(log_probs)
    streamed = torch.cat(outputs).numpy()
    fixture.add(f"{name}_cache_last_channel", channel[:, 0])
    fixture.add(f"{name}_cache_last_time", time[:, 0])
    fixture.add(f"{name}_ids", collapsed(streamed, fixture.blank))
    last = len(fixture.info["results"]) - 1
    offline = fixture.arrays[f"clip{last}_logp"][0, : int(fixture.arrays[f"clip{last}_len"][0])]
    fixture.add(f"{name}_offline_logp", offline)
    both = min(len(streamed), len(offline)) - 2
    difference = float(np.abs(streamed[:both] - offline[:both]).max())
    assert difference < 1e-3, f"NeMo's own streaming is {difference} off its offline output"
    fixture.info["results"][f"streaming_clip{last}"] = {name: {"steps": len(outputs)}}


if __name__ == "__main__":
    main(make)
