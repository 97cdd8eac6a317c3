"""Measure the last step of each run of make.py, and print the tables of the results page.

Besides scores it asks whether a decoder listens: its loss with the right clip against that with another one,
and how many tokens it says. What this file does not do: train.

    python scripts/recipes/ljspeech_decoders/measure.py runs/ljspeech              # every set
    python scripts/recipes/ljspeech_decoders/measure.py runs/ljspeech lj_test an4_dev
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from edge_asr.checkpoints.native import load_checkpoint
from edge_asr.markdown import markdown_table
from edge_asr.model import ConformerCTC
from edge_asr.training.config_io import load_config
from edge_asr.training.corpus import load_corpus
from edge_asr.training.evaluate import DevSet, Weights, build_dev_sets, decode_attention, evaluate_sets
from edge_asr.training.objective import sum_cross_entropy
from edge_asr.training.tokenizer import tokenizer_from_vocabulary

SCORES = ("ctc_wer", "wer", "cer", "damerau_levenshtein", "jaccard", "cosine")
COLUMNS = (
    "set",
    "run",
    "decoder loss",
    "CTC loss",
    "CTC WER %",
    "WER %",
    "CER %",
    "Dam.-Lev.",
    "Jaccard",
    "cosine",
)
LISTENING = ("set", "run", "loss, right clip", "loss, another clip", "tokens said / true", "never ended")


def listen(model: ConformerCTC, dev: DevSet, blank_id: int) -> list[str]:
    """Compare the loss per token with the right clip and with the next one, and count what is said."""
    assert model.decoder is not None
    right = wrong = 0.0
    n_true = n_said = n_endless = n_guesses = 0
    known = [index for index, target in enumerate(dev.targets) if target is not None]
    encoded = {}
    for index in known:
        features = torch.from_numpy(dev.features[index])[None]
        encoded[index] = model.encode(features, torch.tensor([features.shape[1]]))
    for position, index in enumerate(known):
        target = dev.targets[index]
        assert target is not None
        tokens, length = torch.tensor(target), torch.tensor([len(target)])
        other = known[(position + 1) % len(known)]
        right += float(sum_cross_entropy(model.decoder, *encoded[index], tokens, length, 0.0))
        wrong += float(sum_cross_entropy(model.decoder, *encoded[other], tokens, length, 0.0))
        (said,) = decode_attention(model.decoder, *encoded[index], blank_id)
        n_true, n_said, n_guesses = n_true + len(target), n_said + len(said), n_guesses + len(target) + 1
        n_endless += len(said) >= int(encoded[index][1])
    ratios = (f"{value / n_guesses:.2f}" for value in (right, wrong))
    return [*ratios, f"{n_said / n_true:.2f}", f"{n_endless} of {len(known)}"]


@torch.no_grad()
def main() -> int:
    """Print both tables."""
    torch.set_num_threads(1)
    scores_rows, listening_rows = [], []
    for run in sorted(Path(sys.argv[1]).glob("*/last")):
        checkpoint, config = load_checkpoint(run), load_config(run.parent / "config.yaml")
        model, tokenizer = (
            checkpoint.build_model(),
            tokenizer_from_vocabulary(checkpoint.vocabulary, checkpoint.tokenizer_model),
        )
        sources = (*config.data.dev, *config.data.test)
        corpus = load_corpus(
            tuple(one for one in sources if not sys.argv[2:] or Path(one.path).stem in sys.argv[2:]),
            config.data,
            sample_rate=checkpoint.features.sample_rate,
            cache_dir=Path(config.data.cache_dir or run.parent / "cache"),
        )
        sets = build_dev_sets(corpus.clips, checkpoint.features, tokenizer.encode)
        weights = Weights(label_smoothing=config.decoder.label_smoothing, by_decoder=True)
        scores = evaluate_sets(model, sets, checkpoint.vocabulary, max_batch_frames=12_000, weights=weights)
        for dev in sets:
            found = scores[dev.name].to_dict()
            numbers = [
                f"{100 * found[key]:.1f}" if key.endswith("er") else f"{found[key]:.3f}" for key in SCORES
            ]
            losses = [f"{found[key]:.2f}" for key in ("attention_loss", "ctc_loss")]
            scores_rows.append([dev.name, run.parent.name, *losses, *numbers])
            heard = listen(model, dev, checkpoint.vocabulary.blank_id)
            listening_rows.append([dev.name, run.parent.name, *heard])
    for columns, rows in ((COLUMNS, scores_rows), (LISTENING, listening_rows)):
        print("\n".join(markdown_table(columns, sorted(rows), "ll" + "r" * (len(columns) - 2))), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
