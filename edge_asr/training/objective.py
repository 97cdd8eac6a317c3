"""Model plus loss as one module, so that one `forward` passes through Fabric's precision and DDP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_asr.model import ConformerCTC
from edge_asr.training.distillation import TeacherTargets, teacher_divergence


class CTCObjective(nn.Module):
    """Model plus loss, so that one `forward` goes through Fabric's precision and DDP."""

    def __init__(self, model: ConformerCTC, intermediate_weight: float, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.intermediate_weight = intermediate_weight
        self.temperature = temperature

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
        """Sum losses over the rows: f32 [3], (the trained loss, the final CTC loss, teacher divergence).

        The trained loss is CTC, weighted with the intermediate ones, or cross-entropy with `alignment`. The
        divergence is that of the final output, 0 without a teacher.
        """
        log_probs, lens, between, _ = self.model.forward_train(
            features, feature_lens, chunk_frames=chunk_frames, left_chunks=left_chunks
        )
        blank = log_probs.shape[-1] - 1

        def measure(outputs: Tensor) -> Tensor:
            if alignment is not None:
                labels = alignment.flatten()
                return functional.nll_loss(outputs.float().flatten(0, 1), labels, reduction="sum")
            return _ctc_sum(outputs, lens, targets, target_lens, blank)

        total = final = measure(log_probs)
        if alignment is not None:
            with torch.no_grad():
                final = _ctc_sum(log_probs, lens, targets, target_lens, blank)
        if between and self.intermediate_weight > 0:
            inner = torch.stack([measure(item) for item in between]).mean()
            total = (1 - self.intermediate_weight) * total + self.intermediate_weight * inner
        divergence = torch.zeros_like(total)
        if teacher is not None:
            divergence = teacher_divergence(log_probs, teacher, self.temperature)
        return torch.stack([total, final.detach(), divergence])


def _ctc_sum(log_probs: Tensor, lens: Tensor, targets: Tensor, target_lens: Tensor, blank: int) -> Tensor:
    return functional.ctc_loss(
        log_probs.float().transpose(0, 1),
        targets,
        lens,
        target_lens,
        blank=blank,
        reduction="sum",
        zero_infinity=True,
    )
