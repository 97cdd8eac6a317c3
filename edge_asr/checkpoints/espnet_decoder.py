"""The Transformer decoder of ESPnet and WeNet (which began as ESPnet's): its settings and weights as ours.

The tokens are renumbered like the CTC outputs, the blank last. What edge-asr lacks is refused by name, with
the option that leaves a decoder out.
What this file does not do: WeNet's settings (wenet_decoder.py), or other decoders (recurrent, Whisper,
transducers), which the loaders leave out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from edge_asr.checkpoints.assembly import TensorMap
from edge_asr.checkpoints.espnet_blocks import repeated_heads
from edge_asr.checkpoints.safe_yaml import Settings
from edge_asr.checkpoints.vocabularies import move_blank_last
from edge_asr.errors import CheckpointError, ConfigError
from edge_asr.model.decoders.config import DecoderConfig

#: `self_attn` and `src_attn` by our names.
_ATTENTIONS = {"self_attn": "attention", "src_attn": "cross_attention"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderForm:
    """A decoder of the original.

    Attributes:
        source: where its weights are, such as "decoder.left_decoder".
        config: its settings as ours, and those that `DecoderConfig` does not have:
        n_kv_heads: heads of keys and values, where queries have more.
        missing_biases: linear layers without one, such as "self_attn.linear_k".
    """

    source: str
    config: DecoderConfig
    n_kv_heads: int | None = None
    missing_biases: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoders:
    """The decoders of a checkpoint, by the names that ours have in `ConformerConfig`.

    Attributes:
        forms: "decoder" and perhaps "right_decoder"; empty where there is none.
        ctc_weight, reverse_weight: what their training weighed, see `SourceFacts`.
    """

    forms: Mapping[str, DecoderForm] = field(default_factory=dict)
    ctc_weight: float | None = None
    reverse_weight: float | None = None

    @property
    def configs(self) -> dict[str, DecoderConfig]:
        """Fields of `ConformerConfig`."""
        return {name: form.config for name, form in self.forms.items()}

    def move(self, weights: TensorMap, blank_id: int) -> None:
        """Move all their weights.

        Raises:
            CheckpointError: a weight is missing.
        """
        with leaving_out_is_possible():
            for name, form in self.forms.items():
                _move_decoder(weights, form, name, blank_id)


@contextmanager
def leaving_out_is_possible() -> Iterator[None]:
    """Add to errors about a decoder's settings or weights that it can be left out."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        text = str(error).rstrip(".")
        raise CheckpointError(f"{text}; the decoder can be left out (--no-decoder)") from error


def read_decoder(
    conf: Settings,
    model: Settings,
    tokens: Sequence[str],
    ctc_weight: float,
    *,
    d_model: int,
    norm_eps: float,
) -> Decoders:
    """Read ESPnet's decoder_conf and model_conf; of the latter only what concerns the decoder.

    Args:
        tokens: the original's, the blank first.
        ctc_weight: that of its training.

    Raises:
        CheckpointError: a setting that edge-asr does not have.
    """
    with leaving_out_is_possible():
        n_layers = conf.integer("num_blocks", 6)
        conf.expect("qk_norm", (False,), False)
        conf.ignore("layer_drop_rate", "use_flash_attn", "gradient_checkpoint_layers")
        model.expect("lang_token_id", (-1,), -1)
        ends = [model.take(f"sym_{name}", "<sos/eos>") for name in ("sos", "eos")]
        # As in ESPnetASRModel: the last token where the list lacks it.
        sos, eos = (tokens.index(end) if end in tokens else len(tokens) - 1 for end in ends)
        config = make_config(
            conf, n_layers, (sos, eos), n_tokens=len(tokens), blank_id=0, d_model=d_model,
            activation="relu", norm_eps=norm_eps,
        )  # fmt: skip
        conf.finish()
    form = DecoderForm(source="decoder", config=config)
    return Decoders(forms={"decoder": form}, ctc_weight=ctc_weight)


def make_config(
    conf: Settings,
    n_layers: int,
    ends: tuple[int, int],
    *,
    n_tokens: int,
    blank_id: int,
    **fields: Any,
) -> DecoderConfig:
    """Read the settings that ESPnet and WeNet name alike, with our token numbers.

    Args:
        ends: the original's tokens at the beginning and end.
        fields: of `DecoderConfig`.

    Raises:
        CheckpointError: settings that no decoder here has, or a beginning or end that is no token.
    """
    conf.expect("input_layer", ("embed",), "embed")
    conf.expect("use_output_layer", (True,), True)
    conf.expect("normalize_before", (True,), True)
    conf.expect("concat_after", (False,), False)
    conf.ignore(
        "dropout_rate", "positional_dropout_rate", "self_attention_dropout_rate", "src_attention_dropout_rate"
    )
    for name, token in zip(("beginning", "end"), ends, strict=True):
        if not isinstance(token, int) or not 0 <= token < n_tokens or token == blank_id:
            raise CheckpointError(
                f"{conf.where}: the {name} of a text is token {token!r} of {n_tokens}, with the blank at "
                f"{blank_id}; use the settings of one checkpoint"
            )
    sos, eos = (token - (token > blank_id) for token in ends)
    return DecoderConfig(
        kind="pre_norm",
        n_layers=n_layers,
        n_heads=conf.integer("attention_heads", 4),
        d_feed_forward=conf.integer("linear_units", 2048),
        n_tokens=n_tokens,
        sos_id=sos,
        eos_id=eos,
        **fields,
    )


def _move_decoder(weights: TensorMap, form: DecoderForm, target: str, blank_id: int) -> None:
    """Move a decoder, its embeddings and outputs into our order of tokens."""
    source = form.source
    # Positions follow from their size. Layers of WeNet before 2022 hold what only concat_after uses.
    weights.ignore(rf"{re.escape(source)}\.(embed\.1\.pe|decoders\.\d+\.concat_linear[12]\..*)")
    weights.move(f"{source}.embed.0.weight", f"{target}.embedding.weight")
    for layer in range(form.config.n_layers):
        theirs, ours = f"{source}.decoders.{layer}", f"{target}.layers.{layer}"
        for number, name in enumerate(("attention", "cross", "feed_forward"), start=1):
            weights.norm(f"{theirs}.norm{number}", f"{ours}.{name}_norm")
        for attention, name in _ATTENTIONS.items():
            _move_attention(weights, form, theirs, attention, f"{ours}.{name}")
        for theirs_part, ours_part in (("w_1", "0"), ("w_2", "3")):
            part = f"feed_forward.{theirs_part}"
            bias = part not in form.missing_biases
            weights.linear(f"{theirs}.{part}", f"{ours}.feed_forward.{ours_part}", bias=bias)
    weights.norm(f"{source}.after_norm", f"{target}.norm_out")
    weights.linear(f"{source}.output_layer", f"{target}.projection")
    for name in ("embedding.weight", "projection.weight", "projection.bias"):
        weights.ours[f"{target}.{name}"] = move_blank_last(weights.ours[f"{target}.{name}"], blank_id)


def _move_attention(weights: TensorMap, form: DecoderForm, block: str, attention: str, target: str) -> None:
    for part, name in (("q", "query"), ("k", "keys"), ("v", "values"), ("out", "out")):
        linear = f"{attention}.linear_{part}"
        weights.linear(f"{block}.{linear}", f"{target}.{name}", bias=linear not in form.missing_biases)
    for kind in ("weight", "bias"):
        rows = [weights.ours.pop(f"{target}.{name}.{kind}") for name in ("keys", "values")]
        if form.n_kv_heads is not None:
            rows = [repeated_heads(part, form.n_kv_heads, form.config.n_heads) for part in rows]
        weights.ours[f"{target}.keys_values.{kind}"] = torch.cat(rows)
