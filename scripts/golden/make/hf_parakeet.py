"""hf-parakeet: ParakeetForCTC of Hugging Face transformers, saved by its own save_pretrained.

pip install transformers==5.23.0 safetensors
cd scripts && python -m golden.make.hf_parakeet ../tests/data/golden
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from golden.make.common import (
    BATCH_ORDER,
    PIECES,
    Fixture,
    center_head,
    clips,
    main,
    original,
    randomize,
    start,
)

SEED = 11


def make(root: Path) -> None:
    """Build, save, load again by the library's own classes, run."""
    transformers = original("transformers")
    tokenizers = original("tokenizers")
    folder = start(root / "hf-parakeet")
    blank = len(PIECES) + 1
    encoder = transformers.ParakeetEncoderConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=64,
        conv_kernel_size=9,
        subsampling_conv_channels=24,
        num_mel_bins=80,
        scale_input=True,
        attention_bias=True,
    )
    config = transformers.ParakeetCTCConfig(
        vocab_size=blank + 1, pad_token_id=blank, encoder_config=encoder.to_dict()
    )
    model = transformers.ParakeetForCTC(config).eval()
    randomize(model, SEED)
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *PIECES])}
    bpe = tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True)
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<pad>"])
    wrapped = transformers.ParakeetTokenizer(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    extractor = transformers.ParakeetFeatureExtractor(feature_size=80)
    processor = transformers.ParakeetProcessor(feature_extractor=extractor, tokenizer=wrapped)
    waveforms = clips(root)

    def run(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
        inputs = extractor([waveforms[i] for i in rows], sampling_rate=16_000, return_tensors="pt")
        output = model(**inputs, output_attention_mask=True)
        feature_lens = inputs["attention_mask"].sum(-1)
        lens = model._get_subsampling_output_length(feature_lens).tolist()
        return inputs["input_features"], feature_lens, output.logits.log_softmax(-1), lens

    encoded = []
    for i in range(3):
        inputs = extractor([waveforms[i]], sampling_rate=16_000, return_tensors="pt")
        encoded.append(model.encoder(**inputs).last_hidden_state)
    center_head(model.ctc_head, encoded)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    model = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    fixture = Fixture(
        family="hf", variant="parakeet", seed=SEED, blank=blank, source="transformers, ParakeetForCTC"
    )
    for i in range(3):
        features, feature_lens, log_probs, lens = run([i])
        fixture.add_clip(i, features, int(feature_lens[0]), log_probs, lens[0])
    *_, log_probs, lens = run(list(BATCH_ORDER))
    fixture.add_batch(log_probs, lens)
    fixture.info["hyper"] = json.loads((folder / "config.json").read_text())
    fixture.write(folder, ["transformers", "tokenizers", "safetensors"])


if __name__ == "__main__":
    main(make)
