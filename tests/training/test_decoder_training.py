"""Training of attention decoders: the loss, what learns and what stays, evaluation, wrong settings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from edge_asr.checkpoints import load_checkpoint
from edge_asr.cli.main import cli
from edge_asr.errors import ConfigError, ManifestError, TrainingError
from edge_asr.model import ConformerConfig, ConformerCTC
from edge_asr.model.decoders import DecoderConfig
from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import config_from_dict
from edge_asr.training.curves import read_metrics
from edge_asr.training.evaluate import SCORE_NAMES, decode_attention
from edge_asr.training.objective import CTCObjective, sum_cross_entropy
from edge_asr.training.run import train

MakeConfig = Callable[..., TrainConfig]
BLANK = 6


def build_model(kind: str, **changes: Any) -> ConformerCTC:
    torch.manual_seed(5)
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "subsampling_channels": 8, "subsampling_factor": 4}
    config = ConformerConfig.from_preset(
        "tiny", vocab_size=BLANK + 1, decoder=DecoderConfig(kind=kind), **(shape | changes)
    )
    return ConformerCTC(config).eval()


@pytest.mark.parametrize("kind", ["recurrent", "transformer"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@torch.no_grad()
def test_cross_entropy_is_that_of_each_transcript_alone(kind: str, smoothing: float) -> None:
    """Token by token by hand, with smoothing over all outputs; the end counts as a token."""
    decoder = build_model(kind).decoder
    assert decoder is not None
    encoded, lens = torch.randn(3, 8, 16), torch.tensor([8, 5, 2])
    texts = [[1, 2, 3, 4], [], [5]]
    targets = torch.tensor([token for text in texts for token in text])
    found = sum_cross_entropy(decoder, encoded, lens, targets, torch.tensor([4, 0, 1]), smoothing)
    expected = 0.0
    for row, text in enumerate(texts):
        for n, wanted in enumerate([*text, decoder.eos_id]):
            begun = torch.tensor([[decoder.sos_id, *text[:n]]])
            log_probs = decoder(encoded[row : row + 1, : lens[row]], lens[row : row + 1], begun)[0, -1]
            expected -= float((1 - smoothing) * log_probs[wanted] + smoothing * log_probs.mean())
    assert float(found) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["recurrent", "transformer"])
@torch.no_grad()
def test_greedy_attention_is_the_best_token_one_by_one(kind: str) -> None:
    decoder = build_model(kind).decoder
    assert decoder is not None
    decoder.projection.weight.mul_(4)  # type: ignore[union-attr, operator]
    encoded, lens = torch.randn(4, 9, 16), torch.tensor([9, 4, 0, 7])
    found = decode_attention(decoder, encoded, lens, BLANK)
    for row, ids in enumerate(found):
        said: list[int] = []
        while len(said) < lens[row]:
            begun = torch.tensor([[decoder.sos_id, *said]])
            log_probs = decoder(encoded[row : row + 1], lens[row : row + 1], begun)[0, -1]
            log_probs[BLANK] = -torch.inf
            if (best := int(log_probs.argmax())) == decoder.eos_id:
                break
            said.append(best)
        assert ids == said
    assert found[2] == []


def test_a_frozen_encoder_has_no_gradient_and_stays_in_eval_mode() -> None:
    model = build_model("recurrent")
    objective = CTCObjective(model, 0.3, freeze_encoder=True).train()
    assert model.decoder is not None
    assert not model.encoder.training
    assert model.decoder.training
    losses = objective(
        torch.randn(2, 40, 80),
        torch.tensor([40, 30]),
        torch.tensor([1, 2, 3]),
        torch.tensor([2, 1]),
        None,
        None,
    )
    losses[3].backward()
    assert all(p.grad is None for part in (model.encoder, model.head) for p in part.parameters())
    assert all(p.grad is not None for p in model.decoder.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["recurrent", "transformer"])
def test_both_kinds_learn_beside_ctc(make_config: MakeConfig, tone_manifests: Any, kind: str) -> None:
    config = make_config(
        model={"d_model": 48, "dropout": 0.0, "dropout_attention": 0.0, "subsampling_channels": 16},
        augment={"enabled": False},
        data={"max_batch_s": 24.0, "test": [{"path": str(tone_manifests[0]), "name": "held"}]},
        decoder={"kind": kind, "n_layers": 1, "n_heads": 2, "dropout": 0.0},
        optim={"max_steps": 60, "lr": 3e-3, "warmup_steps": 10},
        run={"log_every_steps": 20, "eval_every_steps": 30},
    )
    summary = train(config, quiet=True)
    assert set(summary["dev"]["tones_dev"]) == set(summary["test"]["held"]) == set(SCORE_NAMES)
    rows = read_metrics(Path(config.run_dir) / "metrics.csv")
    first, last = (float([row for row in rows if row["loss"]][i]["attention_loss"]) for i in (0, -1))
    assert last < 0.7 * first
    loss, ctc, attention = (float(rows[-1][f"tones_dev_{n}"]) for n in ("loss", "ctc_loss", "attention_loss"))
    assert loss == pytest.approx(0.3 * ctc + 0.7 * attention, abs=1e-5)
    saved = load_checkpoint(Path(config.run_dir) / "best")
    assert saved.facts.ctc_weight == 0.3
    assert saved.model_config.decoder is not None
    assert saved.model_config.decoder.kind == kind


@pytest.mark.slow
def test_ctc_weights_at_both_ends(make_config: MakeConfig) -> None:
    """1 makes no decoder. With 0 the CTC head has no gradient, and texts are the decoder's."""
    decoder = {"kind": "transformer", "n_layers": 1, "n_heads": 2, "ctc_weight": 1.0}
    alone = make_config(decoder=decoder, optim={"max_steps": 2, "weight_decay": 0.0, "ema_decay": 0.0})
    summary = train(alone, quiet=True)
    assert load_checkpoint(Path(alone.run_dir) / "last").model_config.decoder is None
    assert "attention_wer" not in summary["dev"]["tones_dev"]
    config = make_config(
        init_from=alone.run_dir + "/last",
        run_dir=alone.run_dir + "_0",
        decoder=decoder | {"ctc_weight": 0.0},
        optim={"max_steps": 2, "weight_decay": 0.0, "ema_decay": 0.0},
    )
    scores = train(config, quiet=True)["dev"]["tones_dev"]
    assert scores["wer"] == scores["attention_wer"]
    assert scores["loss"] == pytest.approx(scores["attention_loss"])
    before, after = (load_checkpoint(Path(c.run_dir) / "last").state_dict for c in (alone, config))
    assert torch.equal(before["head.projection.weight"], after["head.projection.weight"])
    assert not torch.equal(before["encoder.subsampling.out.weight"], after["encoder.subsampling.out.weight"])


@pytest.mark.slow
def test_a_decoder_is_added_to_a_checkpoint_and_trained_on(make_config: MakeConfig) -> None:
    first = make_config(optim={"max_steps": 2})
    train(first, quiet=True)
    decoder = {"kind": "recurrent", "n_layers": 1, "n_heads": 2, "freeze_encoder": True}
    added = make_config(init_from=first.run_dir + "/last", run_dir=first.run_dir + "_added", decoder=decoder)
    train(added, quiet=True)
    before, after = (load_checkpoint(Path(c.run_dir) / "last") for c in (first, added))
    for name, value in before.state_dict.items():
        assert torch.equal(after.state_dict[name], value), name
    assert after.facts.ctc_weight is None
    again = make_config(init_from=added.run_dir + "/last", run_dir=first.run_dir + "_again")
    train(again, quiet=True)
    kept = load_checkpoint(Path(again.run_dir) / "last")
    assert kept.model_config.decoder == after.model_config.decoder
    other = make_config(
        init_from=added.run_dir + "/last", run_dir=first.run_dir + "_other", decoder=decoder | {"d_model": 8}
    )
    with pytest.raises(TrainingError, match=r"has no tensor that fits decoder\..*override_init: true"):
        train(other, quiet=True)


@pytest.mark.slow
def test_runs_are_compared_in_one_plot(make_config: MakeConfig, tmp_path: Path) -> None:
    runs = []
    for kind in (None, "recurrent"):
        config = make_config(
            run_dir=str(tmp_path / f"run_{kind}"),
            decoder={"kind": kind, "n_heads": 2},
            optim={"max_steps": 2},
            run={"eval_every_steps": 1},
        )
        train(config, quiet=True)
        runs.append(config.run_dir)
    plot = tmp_path / "both.png"

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, ["train", *arguments])

    result = run("--compare", *runs, "-o", str(plot), "--json")
    assert result.exit_code == 0, result.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = json.loads(result.stdout.splitlines()[-1])["runs"]
    assert math.isfinite(found["run_recurrent"]["dev"]["tones_dev"]["attention_loss"])
    table = run("--compare", *runs, "-o", str(plot), "--force").stdout
    assert "attention WER %" in table
    assert "run_None" in table
    assert "give --force" in run("--compare", *runs, "-o", str(plot)).stderr
    assert "cannot read" in run("--compare", str(tmp_path), "-o", str(tmp_path / "x.png")).stderr
    same = run("--compare", runs[0], runs[0], "-o", str(tmp_path / "x.png"))
    assert "two of the runs have the same folder name" in same.stderr


def test_usage_of_compare(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["train", "--compare", str(tmp_path)])
    assert (result.exit_code, "--compare needs -o FILE.png" in result.stderr) == (2, True)
    result = CliRunner().invoke(cli, ["train", "a.yaml", "b.yaml"])
    assert (result.exit_code, "One CONFIG at a time, got 2" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "rnnt"}, r"decoder\.kind is 'rnnt'; it must be one of recurrent, transformer"),
        ({"ctc_weight": 1.5}, r"ctc_weight must be from 0 to 1, got 1\.5"),
        ({"ctc_weight": "much"}, r"decoder\.ctc_weight is 'much'; it must be a number"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be from 0 to below 1, got 1\.0"),
        ({"freeze_encoder": "no"}, r"decoder\.freeze_encoder is 'no'; it must be true or false"),
        ({"freeze_encoder": True}, r"freeze_encoder is true without init_from; name the checkpoint"),
        (
            {"freeze_encoder": True, "ctc_weight": 1},
            "freeze_encoder with ctc_weight 1 leaves nothing to train",
        ),
        ({"kind": "recurrent", "n_layers": 0}, "n_layers must be from 1 to 256, got 0"),
        ({"kind": "recurrent", "d_model": 7}, "d_model must be even and a multiple of .*, got 7 with 4"),
        ({"kind": "recurrent", "n_heads": 0}, "n_heads must be from 1 to 256, got 0"),
        ({"kind": "recurrent", "d_feed_forward": 0}, "d_feed_forward must be from 1 to 65536, got 0"),
        ({"kind": "recurrent", "dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0"),
        ({"wings": 2}, "decoder has the unknown key 'wings'"),
    ],
)
def test_bad_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict({"decoder": setting})


def test_what_belongs_elsewhere_or_nowhere(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.decoder does not belong there; use the section decoder"):
        train(make_config(model={"decoder": {"kind": "recurrent"}}), quiet=True)
    with pytest.raises((ConfigError, ManifestError), match=r"nothing\.jsonl"):
        train(make_config(data={"test": [{"path": str(tmp_path / "nothing.jsonl")}]}), quiet=True)
