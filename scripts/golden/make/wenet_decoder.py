"""wenet-decoder and wenet-u2pp-decoder: WeNet's attention decoders, one direction and U2++'s two.

What to install is said in wenet_conformer.py, which must have been run; features are its own.

    cd scripts && PYTHONPATH=../wenet python -m golden.make.wenet_decoder ../tests/data/golden

Keys besides those of decoders.py: `clip<i>_hyps` [N, U], texts, -1 behind, and `clip<i>_ctc_scores` [N], what
the CTC search says of each (the last two, half a text and none, are not of the search, and their scores are
invented); `clip<i>_rescoring_<k>` [N], the score of each by `attention_rescoring` with setting k of
golden.json, and `_best`, which text it takes of those that the search found; `clip<i>_beam_<k>`, the text of
`attention_beam_search` with setting k.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.make import wenet_conformer as wenet
from golden.make.common import Fixture, center_head, clips, main, original, randomize, start
from golden.make.decoders import add_teacher_forcing, enliven, ids, padded_tokens, same_in_float64

ENCODER = {
    **wenet.ENCODER,
    "attention_heads": 2,
    "linear_units": 32,
    "num_blocks": 1,
    "output_size": 16,
    "cnn_module_kernel": 7,
}
DECODER = {**wenet.DECODER, "attention_heads": 4, "linear_units": 24, "num_blocks": 2}
#: Older recipes have beginning and end last, newer ones name them.
OLDER_UNITS = [*(unit for unit in wenet.UNITS if unit != "<sos/eos>"), "<sos/eos>"]
VARIANTS: dict[str, dict[str, Any]] = {
    "decoder": {
        "seed": 46,
        "units": OLDER_UNITS,
        "special_tokens": None,
        "encoder": ENCODER,
        "decoder": ("transformer", DECODER),
        "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1, "length_normalized_loss": False},
    },
    "u2pp-decoder": {
        "seed": 48,
        "units": wenet.UNITS,
        "special_tokens": wenet.SPECIAL_TOKENS,
        "encoder": {
            **ENCODER,
            "causal": True,
            "cnn_module_norm": "layer_norm",
            "use_dynamic_chunk": True,
            "use_dynamic_left_chunk": False,
        },
        "decoder": ("bitransformer", {**DECODER, "r_num_blocks": 1, "activation_type": "gelu"}),
        "model_conf": {
            "ctc_weight": 0.3,
            "lsm_weight": 0.1,
            "length_normalized_loss": False,
            "reverse_weight": 0.3,
        },
    },
}
#: Settings of `attention_rescoring`; those with a reverse weight ask for a right-to-left decoder.
RESCORING = (
    {"ctc_weight": 0.0, "reverse_weight": 0.0},
    {"ctc_weight": 0.5, "reverse_weight": 0.0},
    {"ctc_weight": 0.5, "reverse_weight": 0.3},
    {"ctc_weight": 0.1, "reverse_weight": 1.0},
)
BEAMS = (
    {"beam_size": 1, "length_penalty": 0.0},
    {"beam_size": 4, "length_penalty": 0.0},
    {"beam_size": 4, "length_penalty": 1.0},
    {"beam_size": 10, "length_penalty": 0.0},
)
N_BEST = 4


def make(root: Path) -> None:
    """Both models."""
    wenet.prepare_imports()
    for variant, settings in VARIANTS.items():
        make_one(root, variant, **settings)


def make_one(
    root: Path,
    variant: str,
    *,
    seed: int,
    units: list[str],
    special_tokens: dict[str, int] | None,
    encoder: dict[str, Any],
    decoder: tuple[str, dict[str, Any]],
    model_conf: dict[str, Any],
) -> None:
    """Build, save, load again, run."""
    fbank = original("wenet.dataset.processor").compute_fbank
    folder = start(root / f"wenet-{variant}")
    features: list[Tensor] = []
    for waveform in clips(root):
        wave = torch.from_numpy(waveform)[None]
        features.append(fbank({"key": "clip", "wav": wave, "sample_rate": 16_000}, **wenet.FBANK)["feat"])
    wenet.write_cmvn(folder / "global_cmvn", torch.cat(features))
    (folder / "units.txt").write_text("".join(f"{unit} {i}\n" for i, unit in enumerate(units)))
    special = {} if special_tokens is None else {"special_tokens": special_tokens}
    tokenizer = {"split_with_space": False, "symbol_table_path": "data/dict/units.txt", **special}
    wenet.write_config(
        folder / "train.yaml", encoder, decoder, model_conf=model_conf, tokenizer_conf=tokenizer
    )
    model = wenet.build(folder, encoder, decoder, special_tokens)
    randomize(model, seed)
    wenet.restore_cmvn(model, folder)
    encoded = [wenet.encode(model, clip[None], torch.tensor([len(clip)]))[0] for clip in features]
    center_head(model.ctc.ctc_lo, encoded)
    right = getattr(model.decoder, "right_decoder", None)
    left = model.decoder if right is None else model.decoder.left_decoder
    for network in (left, right):
        if network is not None:
            enliven(
                network, decode_with(network), encoded, sos=model.sos, eos=model.eos, seed=seed, end_bias=-0.5
            )
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith(".pe")}
    torch.save(weights, folder / "final.pt")
    model = wenet.build(folder, encoder, decoder, special_tokens)
    model.load_state_dict(torch.load(folder / "final.pt", weights_only=True), strict=False)
    fixture = Fixture(
        family="wenet", variant=variant, seed=seed, blank=0, source="wenet at 015469960d, ASRModel"
    )
    rescoring = [setting for setting in RESCORING if right is not None or not setting["reverse_weight"]]
    for i, clip in enumerate(features):
        encoded_clip, lens = wenet.encode(model, clip[None], torch.tensor([len(clip)]))
        fixture.add_clip(i, clip[None], len(clip), model.ctc.log_softmax(encoded_clip), lens[0])
        add_decoding(fixture, f"clip{i}", model, encoded_clip, rescoring, several=i == 0)
    fixture.info["decoder"] = {
        "sos": model.sos,
        "eos": model.eos,
        "rescoring": rescoring,
        "beams": list(BEAMS),
        "search": "wenet",
    }
    fixture.info["hyper"] = {"encoder": encoder, "decoder": decoder, "model": model_conf}
    fixture.info["cut"] = "the tables of positions (*.pe) are not in final.pt"
    fixture.share_features(folder, "wenet-conformer")
    fixture.write(folder, ["torchaudio", "librosa"])


def decode_with(decoder: Any) -> Any:
    """`decoders.Decode` of one direction."""

    def decode(encoded: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        memory = encoded.expand(len(tokens), -1, -1)
        mask = torch.ones(len(tokens), 1, encoded.shape[1], dtype=torch.bool)
        logits: Tensor = decoder(memory, mask, tokens, lengths)[0]
        return logits

    return decode


def add_decoding(
    fixture: Fixture,
    key: str,
    model: Any,
    encoded: Tensor,
    rescoring: list[dict[str, float]],
    *,
    several: bool,
) -> None:
    """Add all that the decoders make of one clip."""
    search = original("wenet.models.transformer.search")
    lens = torch.tensor([encoded.shape[1]])
    fixture.add(f"{key}_enc", encoded)
    (found,) = search.ctc_prefix_beam_search(model.ctc.log_softmax(encoded), lens, N_BEST)
    best = found.nbest[0]
    hyps = [*found.nbest, best[: len(best) // 2], ()]
    scores = [*found.nbest_scores, found.nbest_scores[0] - 9.0, -30.0]
    fixture.add(f"{key}_hyps", padded_tokens(hyps))
    fixture.add(f"{key}_ctc_scores", np.array(scores))
    forced = [*hyps[:1], *hyps[N_BEST:]] if several else hyps[:1]
    fixture.add(f"{key}_forced", padded_tokens(forced))
    right = getattr(model.decoder, "right_decoder", None)
    left = model.decoder if right is None else model.decoder.left_decoder
    add_teacher_forcing(fixture, f"{key}_dec", decode_with(left), encoded, forced, model.sos)
    if right is not None:
        reversed_hyps = [hyp[::-1] for hyp in forced]
        add_teacher_forcing(
            fixture, f"{key}_dec_right", decode_with(right), encoded, reversed_hyps, model.sos
        )
    times: list[list[int]] = [[] for _ in hyps]

    def rescore(chosen: slice, **weights: float) -> Any:
        given = search.DecodeResult(
            (), nbest=hyps[chosen], nbest_scores=scores[chosen], nbest_times=times[chosen]
        )
        return search.attention_rescoring(model, [given], encoded, lens, **weights)[0]

    for k, weights in enumerate(rescoring):
        each = [rescore(slice(n, n + 1), **weights).score for n in range(len(hyps))]
        winner = rescore(slice(N_BEST), **weights)
        *_, second, first = sorted(each[:N_BEST])
        assert np.isclose(winner.score, first, atol=1e-3)
        assert first - second > 1e-2, f"{key}: a tie"
        fixture.add(f"{key}_rescoring_{k}", np.array(each))
        fixture.add(f"{key}_rescoring_{k}_best", np.array(hyps.index(winner.tokens)))

    def beams() -> list[list[int]]:
        memory = encoded.to(next(model.parameters()).dtype)
        mask = torch.ones(1, 1, encoded.shape[1], dtype=torch.bool)
        return [search.attention_beam_search(model, memory, mask, **k)[0].tokens for k in BEAMS]

    results = beams()
    assert same_in_float64(model, beams, results), f"{key}: rounding decides"
    print(key, "beams of", [len(row) for row in results], "tokens")
    for k, row in enumerate(results):
        fixture.add(f"{key}_beam_{k}", ids(row))


if __name__ == "__main__":
    main(make)
