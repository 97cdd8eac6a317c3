"""espnet-decoder: ESPnet2's Transformer decoder over a Conformer, and what its beam search finds.

What to install is said in espnet_conformer.py, which must have been run; features are its own.

    cd scripts && python -m golden.make.espnet_decoder ../tests/data/golden

Keys besides those of decoders.py: `clip<i>_beam_<k>` [N, U], the texts that the search of espnet2's
asr_inference.py ended with, by setting k of golden.json, the best first, and `_scores` [N].
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.make import espnet_conformer as espnet
from golden.make.common import Fixture, center_head, clips, main, original, padded, randomize, start
from golden.make.decoders import add_teacher_forcing, enliven, padded_tokens, same_in_float64

SEED = 63
END_BIAS = 0.5
FRONTEND = espnet.VARIANTS["conformer"]["frontend"]
ENCODER = {
    **espnet.ENCODER,
    "rel_pos_type": "latest",
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 32,
    "num_blocks": 1,
    "cnn_module_kernel": 7,
}
DECODER = {"attention_heads": 4, "linear_units": 24, "num_blocks": 2, "dropout_rate": 0.1}
#: `maxlenratio` 0 is all frames and an end by `end_detect`.
BEAMS = (
    {"beam_size": 1, "ctc_weight": 0.0, "normalize_length": False, "maxlenratio": 0.0},
    {"beam_size": 4, "ctc_weight": 0.0, "normalize_length": False, "maxlenratio": 0.0},
    {"beam_size": 4, "ctc_weight": 0.0, "normalize_length": True, "maxlenratio": 0.25},
    {"beam_size": 10, "ctc_weight": 0.0, "normalize_length": False, "maxlenratio": 0.0},
    {"beam_size": 4, "ctc_weight": 0.3, "normalize_length": False, "maxlenratio": 0.0},
    {"beam_size": 10, "ctc_weight": 0.5, "normalize_length": False, "maxlenratio": 0.0},
)
N_BEST = 4
MEL_FILTERS = "frontend.logmel.melmat"


def make(root: Path) -> None:
    """Build, save, load again, run."""
    folder = start(root / "espnet-decoder")
    for name in (espnet.EXPERIMENT, espnet.TOKENS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tokens = espnet.write_tokens(folder / espnet.TOKENS)
    waveforms = clips(root)
    front_end = original("espnet2.asr.frontend.default").DefaultFrontend(**FRONTEND).eval()
    raw = [front_end(torch.from_numpy(clip)[None], torch.tensor([len(clip)]))[0][0] for clip in waveforms]
    espnet.write_statistics(folder / espnet.STATISTICS, torch.cat(raw))
    settings = (folder, tokens, FRONTEND, "global_mvn", ENCODER, DECODER)
    espnet.write_config(*settings)
    espnet.write_meta(folder)
    model = espnet.build(*settings)
    randomize(model, SEED)
    encoded = [espnet.encode(model, *padded([clip]))[2] for clip in waveforms]
    center_head(model.ctc.ctc_lo, encoded)
    decode = decode_with(model.decoder)
    enliven(model.decoder, decode, encoded, sos=model.sos, eos=model.eos, seed=SEED, end_bias=END_BIAS)
    weights = folder / espnet.EXPERIMENT / "valid.acc.ave.pth"
    torch.save({k: v for k, v in model.state_dict().items() if k != MEL_FILTERS}, weights)
    model = espnet.build(*settings)
    missing = model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == ([MEL_FILTERS], [])
    fixture = Fixture(
        family="espnet", variant="decoder", seed=SEED, blank=0, source="espnet 202511, ESPnetASRModel"
    )
    for i, clip in enumerate(waveforms):
        features, feature_lens, memory, lens = espnet.encode(model, *padded([clip]))
        fixture.add_clip(i, features, int(feature_lens[0]), model.ctc.log_softmax(memory), lens[0])
        add_decoding(fixture, f"clip{i}", model, memory)
    fixture.info["decoder"] = {
        "sos": model.sos,
        "eos": model.eos,
        "beams": list(BEAMS),
        "search": "espnet",
    }
    fixture.info["hyper"] = {"encoder": ENCODER, "decoder": DECODER, "frontend": FRONTEND}
    fixture.info["cut"] = f"the mel filters ({MEL_FILTERS}) are not in the weights"
    fixture.share_features(folder, "espnet-conformer")
    fixture.write(folder, ["espnet", "sentencepiece"])


def decode_with(decoder: Any) -> Any:
    """`decoders.Decode`."""

    def decode(encoded: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        memory = encoded.expand(len(tokens), -1, -1)
        frames = torch.full((len(tokens),), encoded.shape[1])
        logits: Tensor = decoder(memory, frames, tokens, lengths)[0]
        return logits

    return decode


def search(model: Any, encoded: Tensor, *, ctc_weight: float, maxlenratio: float, **options: Any) -> Any:
    """Run the search that espnet2/bin/asr_inference.py builds; texts with their ends, and scores."""
    scorer = original("espnet.nets.scorers.ctc").CTCPrefixScorer(ctc=model.ctc, eos=model.eos)
    beam = original("espnet.nets.batch_beam_search").BatchBeamSearch(
        weights={"decoder": 1.0 - ctc_weight, "ctc": ctc_weight},
        scorers={"decoder": model.decoder, "ctc": scorer},
        sos=model.sos,
        eos=model.eos,
        vocab_size=len(model.token_list),
        token_list=model.token_list,
        pre_beam_score_key="full",
        **options,
    )
    found = beam(x=encoded.to(next(model.parameters()).dtype)[0], maxlenratio=maxlenratio, minlenratio=0.0)
    return [(hyp.yseq[1:].tolist(), float(hyp.score)) for hyp in found]


def best_text(model: Any, encoded: Tensor, **setting: Any) -> Any:
    """The text that the search takes."""
    return search(model, encoded, **setting)[0][0]


def add_decoding(fixture: Fixture, key: str, model: Any, encoded: Tensor) -> None:
    """Add all that the decoder makes of one clip."""
    fixture.add(f"{key}_enc", encoded)
    for k, setting in enumerate(BEAMS):
        found = search(model, encoded, **setting)
        texts = [text for text, _ in found]
        again = partial(best_text, model, encoded, **setting)
        assert same_in_float64(model, again, texts[0]), f"{key}: rounding decides setting {k}"
        print(key, k, "texts of", [len(text) for text in texts][:8])
        # The end stays where the original puts it: a second one where the search ran out of frames.
        fixture.add(f"{key}_beam_{k}", padded_tokens(texts[:N_BEST]))
        fixture.add(f"{key}_beam_{k}_scores", np.array([score for _, score in found][:N_BEST]))
        if k == 1:
            hyps = [text[: text.index(model.eos)] for text in texts[:2]] + [[]]
            fixture.add(f"{key}_forced", padded_tokens(hyps))
            add_teacher_forcing(fixture, f"{key}_dec", decode_with(model.decoder), encoded, hyps, model.sos)


if __name__ == "__main__":
    main(make)
