"""An LSTM as ONNX's own operator: torch.export (2.13) freezes the number of steps of `nn.LSTM`.

What this file does not do: train, or run in PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class OnnxLstm(nn.Module):
    """Stands in for an `nn.LSTM` of one direction, batch first, in a model that is exported.

    The order of ONNX's gates is input, output, forget, cell; that of PyTorch is input, forget, cell, output.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.n_layers, self.width = lstm.num_layers, lstm.hidden_size
        for layer in range(lstm.num_layers):
            for name in ("weight_ih", "weight_hh"):
                self.register_buffer(f"{name}_{layer}", _reorder(getattr(lstm, f"{name}_l{layer}"))[None])
            biases = [_reorder(getattr(lstm, f"{name}_l{layer}")) for name in ("bias_ih", "bias_hh")]
            self.register_buffer(f"bias_{layer}", torch.cat(biases)[None])

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """See `nn.LSTM.forward`."""
        x = x.transpose(0, 1)  # (U, B, D)
        n_steps, n_rows = x.shape[0], x.shape[1]
        hidden, cell = state
        ends: list[tuple[Tensor, Tensor]] = []
        for layer in range(self.n_layers):
            before = hidden[layer : layer + 1], cell[layer : layer + 1]
            operator: Any = torch.onnx.ops.symbolic_multi_out
            outputs, *end = operator(
                "LSTM",
                (
                    x,
                    getattr(self, f"weight_ih_{layer}"),
                    getattr(self, f"weight_hh_{layer}"),
                    getattr(self, f"bias_{layer}"),
                    None,
                    *before,
                ),
                {"hidden_size": self.width},
                dtypes=(x.dtype,) * 3,
                shapes=(
                    (n_steps, 1, n_rows, self.width),
                    (1, n_rows, self.width),
                    (1, n_rows, self.width),
                ),
            )
            x = outputs.squeeze(1)
            ends.append(tuple(end))
        hidden, cell = (torch.cat(parts) for parts in zip(*ends, strict=True))
        return x.transpose(0, 1), (hidden, cell)


def _reorder(gates: Tensor) -> Tensor:
    """(4 * D, ...) in PyTorch's order of gates -> in ONNX's."""
    entry, forget, cell, output = gates.detach().chunk(4)
    return torch.cat((entry, output, forget, cell))
