"""The attention decoders of WeNet folders: `transformer`, and U2++'s `bitransformer` in both directions.

It reads decoder_conf and what model_conf says of the decoders.
What this file does not do: move weights (espnet_decoder.py).

Sources: WeNet, wenet/models/transformer/{decoder,asr_model}.py, wenet/utils/init_model.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from edge_asr.checkpoints.espnet_decoder import DecoderForm, Decoders, leaving_out_is_possible, make_config
from edge_asr.checkpoints.safe_yaml import Settings

#: Kinds of `decoder` that edge-asr has.
DECODERS = ("transformer", "bitransformer")
ACTIVATIONS = {
    "swish": "silu", "relu": "relu", "gelu": "gelu", "tanh": "tanh", "hardtanh": "hardtanh", "selu": "selu",
}  # fmt: skip

#: Flags of a decoder, and the linear layers that have a bias where they are true.
_BIASES = {
    "query_bias": ("self_attn.linear_q", "self_attn.linear_out"),
    "key_bias": ("self_attn.linear_k",),
    "value_bias": ("self_attn.linear_v",),
    "src_query_bias": ("src_attn.linear_q", "src_attn.linear_out"),
    "src_key_bias": ("src_attn.linear_k",),
    "src_value_bias": ("src_attn.linear_v",),
    "mlp_bias": ("feed_forward.w_1", "feed_forward.w_2"),
}


def read_decoders(
    kind: str,
    conf: Settings,
    model: Settings,
    special_tokens: Any,
    *,
    n_tokens: int,
    blank_id: int,
    d_model: int,
) -> Decoders:
    """Read decoder_conf and model_conf; of the latter only what concerns decoders.

    Args:
        kind: one of `DECODERS`.
        special_tokens: of tokenizer_conf, numbers by name; None in older folders.

    Raises:
        CheckpointError: a setting that edge-asr does not have.
    """
    special = special_tokens if isinstance(special_tokens, dict) else {}
    ends = special.get("<sos>", n_tokens - 1), special.get("<eos>", n_tokens - 1)
    with leaving_out_is_possible():
        model.expect("apply_non_blank_embedding", (False,), False)
        activation = ACTIVATIONS[conf.expect("activation_type", tuple(ACTIVATIONS), "relu")]
        config = make_config(
            conf, conf.integer("num_blocks", 6), ends, n_tokens=n_tokens, blank_id=blank_id, d_model=d_model,
            activation=activation, norm_eps=conf.number("norm_eps", 1e-5),
        )  # fmt: skip
        conf.expect("src_attention", (True,), True)
        conf.expect("layer_norm_type", ("layer_norm",), "layer_norm")
        conf.expect("mlp_type", ("position_wise_feed_forward",), "position_wise_feed_forward")
        conf.expect("head_dim", (None, d_model // config.n_heads), None)
        n_kv_heads = conf.integer("n_kv_head", None)
        if n_kv_heads is not None and (n_kv_heads < 1 or config.n_heads % n_kv_heads):
            raise conf.refusal("n_kv_head", n_kv_heads, f"a divisor of attention_heads ({config.n_heads})")
        missing = {layer for flag, layers in _BIASES.items() if not conf.flag(flag, True) for layer in layers}
        n_right = conf.integer("r_num_blocks", 0) if kind == "bitransformer" else 0
        # The last is done when training ends: the weights hold both.
        conf.ignore(
            "use_sdpa", "gradient_checkpointing", "n_expert", "n_expert_activated", "tie_word_embedding"
        )
        conf.finish()

    def form(source: str, n_layers: int) -> DecoderForm:
        return DecoderForm(
            source=source,
            config=dataclasses.replace(config, n_layers=n_layers),
            n_kv_heads=n_kv_heads,
            missing_biases=frozenset(missing),
        )

    two = kind == "bitransformer"
    forms = {"decoder": form("decoder.left_decoder" if two else "decoder", config.n_layers)}
    if n_right:
        forms["right_decoder"] = form("decoder.right_decoder", n_right)
    return Decoders(
        forms=forms,
        ctc_weight=model.number("ctc_weight", 0.5),
        reverse_weight=model.number("reverse_weight", 0.0) if n_right else None,
    )
