"""Conformer-CTC as one module: features in, log-probabilities out.

It holds the global CMVN, the encoder, the linear or LSTM head, intermediate CTC outputs and, where the
configuration asks for one, an attention decoder over the same encoder. It must stay exportable, so nothing
here branches on tensor content.
What this file does not do: compute losses, decode.
"""

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edge_asr.errors import ConfigError
from edge_asr.model.config import ConformerConfig
from edge_asr.model.decoders.base import AttentionDecoder
from edge_asr.model.decoders.choose import make_decoder
from edge_asr.model.decoders.config import DecoderConfig
from edge_asr.model.encoder import ConformerEncoder
from edge_asr.model.masks import valid_frames


class GlobalCMVN(nn.Module):
    """(x - mean) * istd per mel band, with statistics of the training set held as buffers."""

    mean: Tensor
    istd: Tensor

    def __init__(self, n_mels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_mels))
        self.register_buffer("istd", torch.ones(n_mels))

    def forward(self, features: Tensor) -> Tensor:
        """float (B, T, n_mels) -> the same shape."""
        return (features - self.mean) * self.istd


class CTCHead(nn.Module):
    """Log-probabilities over the vocabulary; with `lstm`, one unidirectional layer before the projection.

    The LSTM runs forward in time from a zero state, so frames past a row's end cannot change earlier ones.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.lstm = (
            nn.LSTM(config.d_model, config.d_model, batch_first=True) if config.head == "lstm" else None
        )
        self.projection = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> float32 (B, T, V); float64 where the network runs in float64."""
        if self.lstm is not None:
            x, _ = self.lstm(x)
        logits = self.projection(x)
        return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


class ConformerCTC(nn.Module):
    """An encoder with a CTC head and perhaps an attention decoder; the blank is the last output.

    Attributes:
        decoder, right_decoder: None where the configuration has none. They attend to what `encode` gives.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.cmvn = GlobalCMVN(config.n_mels) if config.cmvn else None
        self.encoder = ConformerEncoder(config)
        self.head = CTCHead(config)
        self.decoder = self._make_decoder(config.decoder)
        self.right_decoder = self._make_decoder(config.right_decoder)

    def _make_decoder(self, decoder: DecoderConfig | None) -> AttentionDecoder | None:
        if decoder is None:
            return None
        return make_decoder(decoder, self.config.d_model, self.config.vocab_size)

    def forward(
        self,
        features: Tensor,
        feature_lens: Tensor,
        *,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of every encoder frame.

        Args:
            features: float32 (B, T, n_mels), T >= 1; frames past a row's length are ignored, even NaN.
            feature_lens: int64 (B,), valid feature frames, 0 to T.
            chunk_frames: attention sees whole chunks of this many encoder frames, the own one and those
                before; None is full context.
            left_chunks: how many chunks before the own one are seen; None is all of them.

        Returns:
            float32 (B, T', vocab_size) with T' = `config.output_frames.n_graph(T)`, natural log; int64 (B,)
            lengths. Frames past a row's length are finite and mean nothing.

        Raises:
            ConfigError: for chunk sizes out of range, or chunks with linear attention.
        """
        encoded, lens = self.encode(
            features, feature_lens, chunk_frames=chunk_frames, left_chunks=left_chunks
        )
        return self.head(encoded), lens

    def encode(
        self,
        features: Tensor,
        feature_lens: Tensor,
        *,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the encoder alone: what the CTC head and the decoders take.

        Returns:
            float (B, T', d_model) and int64 (B,) lengths; see `forward`.
        """
        outputs, lens = self._encode(features, feature_lens, chunk_frames, left_chunks)
        return outputs[-1], lens

    def forward_train(
        self,
        features: Tensor,
        feature_lens: Tensor,
        *,
        chunk_frames: int | None = None,
        left_chunks: int | None = None,
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """Run `forward`, and also return what losses besides that of the output need.

        Returns:
            log_probs (B, T', V), lens (B,), one (B, T', V) for each of `config.intermediate_ctc_layers`, and
            what `encode` gives (B, T', d_model).
        """
        outputs, lens = self._encode(features, feature_lens, chunk_frames, left_chunks)
        return self.head(outputs[-1]), lens, [self.head(output) for output in outputs[:-1]], outputs[-1]

    def _encode(
        self, features: Tensor, feature_lens: Tensor, chunk_frames: int | None, left_chunks: int | None
    ) -> tuple[list[Tensor], Tensor]:
        if self.cmvn is not None:
            features = self.cmvn(features)
        valid = valid_frames(feature_lens, features.shape[1])
        # where, not a product: padding may hold anything, NaN included.
        features = features.masked_fill(~valid[:, :, None], 0.0)
        return cast(
            "tuple[list[Tensor], Tensor]", self.encoder(features, feature_lens, chunk_frames, left_chunks)
        )

    def set_cmvn(
        self, mean: npt.NDArray[np.floating] | Tensor, std: npt.NDArray[np.floating] | Tensor
    ) -> None:
        """Fill in the feature statistics.

        Args:
            mean, std: (n_mels,), of the features as the front end gives them; std > 0.

        Raises:
            ConfigError: when the model was configured without CMVN, or for a wrong shape or value.
        """
        if self.cmvn is None:
            raise ConfigError("this model has no CMVN; create it with cmvn=True to set its statistics")
        new_mean = torch.as_tensor(mean, dtype=torch.float32)
        new_std = torch.as_tensor(std, dtype=torch.float32)
        for name, value in (("mean", new_mean), ("std", new_std)):
            if value.shape != self.cmvn.mean.shape:
                raise ConfigError(
                    f"the CMVN {name} must have {self.config.n_mels} values, one for a mel band, "
                    f"got shape {tuple(value.shape)}"
                )
        if not bool(torch.isfinite(new_mean).all()) or not bool(
            (new_std > 0).all() & torch.isfinite(new_std).all()
        ):
            raise ConfigError("the CMVN statistics must be finite, with every std above 0; recompute them")
        self.cmvn.mean.copy_(new_mean)
        self.cmvn.istd.copy_(1.0 / new_std)
