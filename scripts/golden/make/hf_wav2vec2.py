"""hf-wav2vec2conformer-*: Wav2Vec2ConformerForCTC of transformers, rotary and relative positions.

pip install transformers==5.23.0 safetensors
cd scripts && python -m golden.make.hf_wav2vec2 ../tests/data/golden
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from golden.make.common import (
    BATCH_ORDER,
    CHARACTERS,
    Fixture,
    center_head,
    clips,
    main,
    original,
    randomize,
    start,
)

SEEDS = {"rotary": 21, "relative": 22}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "|"]


def make(root: Path) -> None:
    """Both kinds of positions."""
    for positions, seed in SEEDS.items():
        make_one(root, positions, seed)


def make_one(root: Path, positions: str, seed: int) -> None:
    """Build, save, load again by the library's own classes, run."""
    transformers = original("transformers")
    folder = start(root / f"hf-wav2vec2conformer-{positions}")
    tokens = [*SPECIAL, *CHARACTERS.strip().upper()]
    config = transformers.Wav2Vec2ConformerConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[16] * 7,
        feat_extract_norm="layer",
        conv_bias=True,
        conv_depthwise_kernel_size=31,
        position_embeddings_type=positions,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        pad_token_id=0,
    )
    model = transformers.Wav2Vec2ConformerForCTC(config).eval()
    randomize(model, seed)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), pad_token="<pad>")
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    processor = transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)
    waveforms = clips(root)

    def prepare(rows: list[int]) -> dict[str, torch.Tensor]:
        clips_of_rows = [waveforms[i] for i in rows]
        inputs = extractor(clips_of_rows, sampling_rate=16_000, padding=True, return_tensors="pt")
        return dict(inputs)

    center_head(
        model.lm_head,
        [model.wav2vec2_conformer(**prepare([i])).last_hidden_state for i in range(3)],
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    model = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    fixture = Fixture(
        family="hf",
        variant=f"wav2vec2conformer-{positions}",
        seed=seed,
        blank=0,
        source="transformers, Wav2Vec2ConformerForCTC",
    )

    def run(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        inputs = prepare(rows)
        lens = model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1)).tolist()
        return inputs["input_values"], model(**inputs).logits.log_softmax(-1), lens

    for i in range(3):
        wave, log_probs, lens = run([i])
        fixture.add_clip(i, wave, wave.shape[1], log_probs, lens[0])
    _, log_probs, lens = run(list(BATCH_ORDER))
    fixture.add_batch(log_probs, lens)
    fixture.info["hyper"] = json.loads((folder / "config.json").read_text())
    if positions == "relative":
        fixture.share_features(folder, "hf-wav2vec2conformer-rotary")
    fixture.write(folder, ["transformers", "safetensors"])


if __name__ == "__main__":
    main(make)
