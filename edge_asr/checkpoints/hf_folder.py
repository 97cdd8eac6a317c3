"""Reads what Hugging Face folders share: config.json, safetensors, feature extractor and tokenizer files.

It finds and reads them, in the layouts of transformers 4 and 5.
What this file does not do: map weights (parakeet.py, wav2vec2.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from edge_asr.checkpoints.safe_archive import inside
from edge_asr.checkpoints.safe_torch import load_safetensors, load_tensors
from edge_asr.checkpoints.safe_yaml import Settings, load_json
from edge_asr.errors import CheckpointError

#: transformers' names of activations that edge-asr has (transformers/activations.py, ACT2CLS).
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu", "relu": "relu"}

#: Of every configuration: bookkeeping, and outputs that nobody asks for here.
IGNORED_SETTINGS = (
    "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path",
    "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward",
    "is_encoder_decoder", "id2label", "label2id", "problem_type", "use_cache", "bos_token_id",
    "eos_token_id", "tie_word_embeddings", "gradient_checkpointing", "_attn_implementation_autoset",
    "use_return_dict", "task_specific_params",
)  # fmt: skip


def load_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, its shards, or pytorch_model.bin.

    Raises:
        CheckpointError: none of them is there, or one is damaged.
    """
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        return load_safetensors(path / "model.safetensors")
    if index.is_file():
        shards = load_json(index, f"{path.name}/{index.name}").get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"{index} has no weight_map; copy the checkpoint again")
        tensors: dict[str, Tensor] = {}
        for shard in sorted(set(map(str, shards.values()))):
            tensors.update(load_safetensors(inside(path, shard)))
        return tensors
    return load_tensors(path / "pytorch_model.bin")


def feature_extractor_settings(path: Path, expected: str) -> Settings:
    """Settings of the feature extractor, wherever this version of transformers wrote them.

    Raises:
        CheckpointError: there is none, or it is another one than `expected`.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (path / name).is_file():
            continue
        where = f"{path.name}/{name}"
        settings = Settings(load_json(path / name, where), where)
        if "feature_extractor" in settings:
            settings = settings.section("feature_extractor")
        elif name == "processor_config.json":
            continue
        settings.expect("feature_extractor_type", (expected,), expected)
        return settings
    raise CheckpointError(
        f"{path} has no preprocessor_config.json (or processor_config.json) with the feature extractor's "
        "settings"
    )


def tokens_from_tokenizer(path: Path, vocab_size: int, blank_id: int) -> list[str]:
    """Tokens by id from tokenizer.json, its added tokens over the model's; the blank's text does not matter.

    Raises:
        CheckpointError: an id without a token, or one outside the vocabulary.
    """
    where = f"{path.name}/tokenizer.json"
    values = load_json(path / "tokenizer.json", where)
    tokens: dict[int, str] = {}
    vocabulary: Any = Settings(values, where).section("model", {}).take("vocab", None)
    try:
        if isinstance(vocabulary, dict):
            tokens.update({int(index): str(token) for token, index in vocabulary.items()})
        elif isinstance(vocabulary, list):  # Unigram: [token, score] in the order of ids
            tokens.update({index: str(entry[0]) for index, entry in enumerate(vocabulary)})
        for entry in values.get("added_tokens") or []:
            tokens[int(entry["id"])] = str(entry["content"])
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{where} holds no vocabulary that edge-asr can read ({error!r})") from error
    tokens.setdefault(blank_id, "<blk>")
    missing = [index for index in range(vocab_size) if index not in tokens]
    if missing or max(tokens) >= vocab_size:
        raise CheckpointError(
            f"{where} has tokens {min(tokens)} to {max(tokens)}, without {missing[:3] or 'none'}; the "
            f"model has {vocab_size} outputs"
        )
    return [tokens[index] for index in range(vocab_size)]
