"""The encoder of a CTranslate2 Whisper in PyTorch, with clips packed into its windows of 30 s.

Whisper encodes 30 s whatever a clip's length, so `pack_clips` puts several clips into one window with
silence between them, and `encode_clips` cuts each clip's states out again. On CPUs with AMX, bfloat16 here
takes a third of the time of CTranslate2's int8. Decoding stays with CTranslate2, which takes these states
as they are.

What it does not do: anything with text. Architecture after openai/whisper, whisper/model.py (AudioEncoder);
file format after OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py (`_serialize`).
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

RATE, WINDOW_FRAMES, HOP_SAMPLES = 16_000, 3000, 160
STATE_SAMPLES = 2 * HOP_SAMPLES  # one encoder state covers 20 ms
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_variables(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Every variable of a CTranslate2 `model.bin`, int8 weights multiplied out with their scales."""
    data, place = memoryview(path.read_bytes()), 0

    def take(code: str) -> int:
        nonlocal place
        value: int = struct.unpack_from("<" + code, data, place)[0]
        place += struct.calcsize("<" + code)
        return value

    def take_text() -> str:
        nonlocal place
        length = take("H")
        text = bytes(data[place : place + length]).rstrip(b"\0").decode()
        place += length
        return text

    version = take("I")
    take_text()
    take("I")
    found: dict[str, npt.NDArray[np.generic]] = {}
    for _ in range(take("I")):
        name = take_text()
        shape = [take("I") for _ in range(take("B"))]
        dtype = np.dtype(DTYPES[take("B")]) if version >= 4 else np.dtype(f"V{take('B')}")
        n_bytes = take("I")
        found[name] = np.frombuffer(data[place : place + n_bytes], dtype).reshape(shape)
        place += n_bytes
    for name in [n for n in found if n.endswith("_scale")]:
        weight = found[name.removesuffix("_scale")].astype(np.float32)
        scale = found[name].astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1))
        found[name.removesuffix("_scale")] = weight / scale
    return found


class WhisperEncoder(nn.Module):
    """log-mel [B, 80, 3000] to states [B, 1500, d_model]."""

    def __init__(self, model_bin: Path, n_heads: int = 8, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        raw = read_variables(model_bin)
        self.weights = {
            name.removeprefix("encoder/"): torch.from_numpy(np.array(value, np.float32)).to(dtype)
            for name, value in raw.items()
            if name.startswith("encoder/") and value.ndim and not name.endswith("_scale")
        }
        self.n_layers = len(
            {
                name.split("/")[0]
                for name in self.weights
                if name.startswith("layer_") and "layer_norm" not in name.split("/")[0]
            }
        )
        self.n_heads, self.dtype = n_heads, dtype

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], self.weights[f"{name}/gamma"], self.weights[f"{name}/beta"]
        )

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, self.weights[f"{name}/weight"], self.weights[f"{name}/bias"])

    @torch.inference_mode()
    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        w = self.weights
        x = functional.gelu(
            functional.conv1d(log_mel.to(self.dtype), w["conv1/weight"], w["conv1/bias"], padding=1)
        )
        x = functional.gelu(functional.conv1d(x, w["conv2/weight"], w["conv2/bias"], stride=2, padding=1))
        x = x.transpose(1, 2)  # (B, T, D)
        x = x + w["position_encodings/encodings"][: x.shape[1]]
        for layer in range(self.n_layers):
            name = f"layer_{layer}"
            y = self.linear(
                self.norm(x, f"{name}/self_attention/layer_norm"), f"{name}/self_attention/linear_0"
            )
            heads = (*y.shape[:2], self.n_heads, -1)
            q, k, v = (part.reshape(heads).transpose(1, 2) for part in y.chunk(3, -1))
            y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self.linear(y, f"{name}/self_attention/linear_1")
            y = self.norm(x, f"{name}/ffn/layer_norm")
            x = x + self.linear(
                functional.gelu(self.linear(y, f"{name}/ffn/linear_0")), f"{name}/ffn/linear_1"
            )
        return self.norm(x, "layer_norm").float()


def pack_clips(
    durations_s: Sequence[float], gap_s: float = 0.5, window_s: float = 29.5, ahead: int = 64
) -> Iterator[list[int]]:
    """Indices of clips for each window, first fit among `ahead` open windows: order is roughly kept."""
    open_windows: list[tuple[float, list[int]]] = []
    for index, duration in enumerate(durations_s):
        needed = duration + gap_s
        for place, (filled, inside) in enumerate(open_windows):
            if filled + needed <= window_s:
                open_windows[place] = (filled + needed, [*inside, index])
                break
        else:
            open_windows.append((needed, [index]))
        if len(open_windows) > ahead:
            open_windows.sort(key=lambda entry: -entry[0])
            yield open_windows.pop(0)[1]
    for _, inside in open_windows:
        yield inside


def log_mel(waveform: npt.NDArray[np.float32], filters: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Whisper's log-mel of 30 s, [80, 3000], silence appended; after whisper/audio.py."""
    padded = torch.from_numpy(np.pad(waveform, (0, max(0, WINDOW_FRAMES * HOP_SAMPLES - len(waveform)))))
    spectrum = torch.stft(padded, 400, HOP_SAMPLES, window=torch.hann_window(400), return_complex=True)
    power = spectrum[:, :WINDOW_FRAMES].abs() ** 2
    values = torch.log10(torch.clamp(torch.from_numpy(filters) @ power, min=1e-10))
    values = torch.maximum(values, values.max() - 8.0)
    result: npt.NDArray[np.float32] = ((values + 4.0) / 4.0).numpy()
    return result


def encode_clips(
    encoder: WhisperEncoder,
    waveforms: Sequence[npt.NDArray[np.float32]],
    filters: npt.NDArray[np.float32],
    gap_s: float = 0.5,
    whole: bool = False,
) -> list[npt.NDArray[np.float32]]:
    """States of clips that fit one window together: [ceil(n_samples / 320), d_model] each
    (`whole`: all of the window's).

    Each clip is brought to the same peak first: Whisper's log-mel cuts all that is 80 dB below the loudest.
    """
    pieces, starts, end = [], [], 0
    gap = round(gap_s * RATE / STATE_SAMPLES) * STATE_SAMPLES
    for waveform in waveforms:
        starts.append(end)
        length = -(-len(waveform) // STATE_SAMPLES) * STATE_SAMPLES + gap
        peak = max(1e-3, float(np.abs(waveform).max(initial=0.0)))
        pieces.append(np.pad(waveform * np.float32(0.5 / peak), (0, length - len(waveform))))
        end += length
    mel = log_mel(np.concatenate(pieces), filters)
    states = encoder(torch.from_numpy(mel)[None])[0].numpy()
    if whole:
        return [states for _ in waveforms]
    return [
        states[s // STATE_SAMPLES :][: -(-len(w) // STATE_SAMPLES)]
        for s, w in zip(starts, waveforms, strict=True)
    ]
