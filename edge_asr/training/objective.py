"""Model plus loss as one module, so that one `forward` passes through Fabric's precision and DDP.

The losses are CTC's (or cross-entropy with an alignment), a teacher's divergence, and the cross-entropy of an
attention decoder that continues the true transcript ("teacher forcing").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from edge_asr.model import ConformerCTC
from edge_asr.model.decoders import AttentionDecoder
from edge_asr.training.distillation import TeacherTargets, teacher_divergence
from edge_asr.training.flat_start import IGNORED

N_LOSSES = 4


class CTCObjective(nn.Module):
    """Model plus loss, so that one `forward` goes through Fabric's precision and DDP.

    With `freeze_encoder` only the decoder learns; the rest stays in eval mode and has no gradient.
    """

    def __init__(
        self,
        model: ConformerCTC,
        intermediate_weight: float,
        temperature: float = 1.0,
        *,
        label_smoothing: float = 0.0,
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.intermediate_weight = intermediate_weight
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.freeze_encoder = freeze_encoder
        for part in self._frozen():
            part.requires_grad_(False)

    def _frozen(self) -> tuple[nn.Module, ...]:
        return (self.model.encoder, self.model.head) if self.freeze_encoder else ()

    def train(self, mode: bool = True) -> CTCObjective:
        """Set the mode of all but the frozen parts."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def forward(
        self,
        features: Tensor,
        feature_lens: Tensor,
        targets: Tensor,
        target_lens: Tensor,
        chunk_frames: int | None,
        left_chunks: int | None,
        alignment: Tensor | None = None,
        teacher: TeacherTargets | None = None,
    ) -> Tensor:
        """Sum losses over the rows: f32 [4], (trained CTC, final CTC, teacher divergence, decoder).

        The trained loss is CTC, weighted with the intermediate ones, or cross-entropy with `alignment`. The
        divergence is that of the final output, 0 without a teacher. The decoder's loss is 0 without one.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            log_probs, lens, between, encoded = self.model.forward_train(
                features, feature_lens, chunk_frames=chunk_frames, left_chunks=left_chunks
            )
        blank = log_probs.shape[-1] - 1

        def measure(outputs: Tensor) -> Tensor:
            if alignment is not None:
                labels = alignment.flatten()
                return functional.nll_loss(outputs.float().flatten(0, 1), labels, reduction="sum")
            return sum_ctc(outputs, lens, targets, target_lens, blank)

        total = final = measure(log_probs)
        if alignment is not None:
            with torch.no_grad():
                final = sum_ctc(log_probs, lens, targets, target_lens, blank)
        if between and self.intermediate_weight > 0:
            inner = torch.stack([measure(item) for item in between]).mean()
            total = (1 - self.intermediate_weight) * total + self.intermediate_weight * inner
        divergence = attention = torch.zeros_like(total)
        if teacher is not None:
            divergence = teacher_divergence(log_probs, teacher, self.temperature)
        if self.model.decoder is not None:
            attention = sum_cross_entropy(
                self.model.decoder, encoded, lens, targets, target_lens, self.label_smoothing
            )
        return torch.stack([total, final.detach(), divergence, attention])


def sum_ctc(log_probs: Tensor, lens: Tensor, targets: Tensor, target_lens: Tensor, blank: int) -> Tensor:
    """Sum the CTC losses of the rows; a row that is too short for its target counts 0."""
    return functional.ctc_loss(
        log_probs.float().transpose(0, 1),
        targets,
        lens,
        target_lens,
        blank=blank,
        reduction="sum",
        zero_infinity=True,
    )


def sum_cross_entropy(
    decoder: AttentionDecoder,
    encoded: Tensor,
    lens: Tensor,
    targets: Tensor,
    target_lens: Tensor,
    label_smoothing: float,
) -> Tensor:
    """Sum a decoder's cross-entropies over all tokens of the rows, ends included: one more than tokens.

    Args:
        decoder: the decoder.
        encoded, lens: what it attends to, float (B, T, D), and valid frames (B,).
        targets, target_lens: i64 [sum of target_lens], all rows one after another, and i64 [B].
        label_smoothing: see `torch.nn.functional.cross_entropy`.
    """
    rows = torch.split(targets, target_lens.tolist())
    begin, end = targets.new_tensor([decoder.sos_id]), targets.new_tensor([decoder.eos_id])
    tokens = pad_sequence([torch.cat((begin, row)) for row in rows], batch_first=True)
    labels = pad_sequence(
        [torch.cat((row, end)) for row in rows], batch_first=True, padding_value=float(IGNORED)
    )
    log_probs = decoder(encoded, lens, tokens)
    return functional.cross_entropy(
        log_probs.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
