"""Write when each character of training clips is said, for a flat start: OUTPUT/SOURCE.jsonl.

    python scripts/recipes/tiny_en/align.py tiny-en -o .work/alignments \
        an4=../shared/data/an4_train.jsonl librispeech=../shared/data/librispeech_train.jsonl

CHECKPOINT is any CTC model with a character vocabulary, at its best the one that is to be replaced. Clips
whose text it cannot spell or fit in are left out. A source whose file is there already is skipped.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import torch

from edge_asr.checkpoints import load_any
from edge_asr.errors import VocabularyError
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.training.alignment import align_tokens, write_alignment
from edge_asr.training.config import DataConfig, SourceConfig
from edge_asr.training.corpus import load_corpus


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True, metavar="NAME=MANIFEST...")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--cache-dir", type=click.Path(file_okay=False, path_type=Path))
@torch.no_grad()
def main(checkpoint: Path, sources: tuple[str, ...], output: Path, cache_dir: Path | None) -> None:
    """Align the clips of each NAME=MANIFEST with CHECKPOINT."""
    loaded = load_any(checkpoint)
    model = loaded.build_model().eval()
    extractor = FeatureExtractor(loaded.features)
    sample_rate, hop = loaded.features.sample_rate, loaded.features.hop_length
    frame_s = loaded.model_config.subsampling_factor * hop / sample_rate
    output.mkdir(parents=True, exist_ok=True)
    for name, manifest in (source.split("=", 1) for source in sources):
        path = output / f"{name}.jsonl"
        if path.is_file():
            continue
        corpus = load_corpus(
            [SourceConfig(path=manifest, name=name)],
            DataConfig(),
            sample_rate=sample_rate,
            cache_dir=cache_dir or output / "cache",
        )
        n_left_out = 0
        partial = path.with_suffix(".tmp")
        with partial.open("w", encoding="utf-8") as file:
            for clip in corpus.clips:
                try:
                    tokens = np.asarray(loaded.vocabulary.encode_characters(clip.text), np.int64)
                except VocabularyError:
                    n_left_out += 1
                    continue
                features = torch.from_numpy(extractor(clip.load(sample_rate)))
                log_probs, lens = model(features[None], torch.tensor([len(features)]))
                row = log_probs[0, : int(lens[0])].numpy()
                frames = align_tokens(row, tokens, loaded.vocabulary.blank_id)
                if frames is None:
                    n_left_out += 1
                    continue
                write_alignment(file, clip.id, clip.text, frames * frame_s)
        partial.replace(path)
        print(f"{name}: {len(corpus.clips) - n_left_out} aligned, {n_left_out} left out", file=sys.stderr)


if __name__ == "__main__":
    main()
