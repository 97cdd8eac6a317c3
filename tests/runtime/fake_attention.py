"""A fake attention decoder: a random network of a few numbers, whose steps and whole texts agree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.decoding.attention.network import Memory, State

F32Array = npt.NDArray[np.float32]
WIDTH = 8


class FakeAttentionNetwork:
    """Fake `DecoderNetwork`; it ends texts with its last token, or never."""

    batch_axes = (1,)

    def __init__(self, n_tokens: int, d_memory: int, *, seed: int = 0, ends: bool = True) -> None:
        random = np.random.default_rng(seed)
        self.n_tokens = n_tokens
        self.sos_id = self.eos_id = n_tokens - 1
        self.shapes: list[tuple[int, ...]] = []
        self._ends = ends
        self._embedding = random.normal(size=(n_tokens, WIDTH))
        self._inner = 0.5 * random.normal(size=(WIDTH, WIDTH))
        self._outer = 2.0 * random.normal(size=(WIDTH, n_tokens))
        self._memory = random.normal(size=(d_memory, WIDTH))

    def attend(self, encoded: F32Array) -> Memory:
        return Memory((np.float32(encoded.mean(axis=0) @ self._memory),), len(encoded))

    def start(self, batch: int) -> State:
        return (np.zeros((1, batch, WIDTH), np.float32),)

    def advance(self, tokens: npt.NDArray[np.int64], state: State, memory: Memory) -> tuple[F32Array, State]:
        self.shapes.append(tokens.shape)
        hidden = state[0][0].astype(np.float64)
        steps = []
        for column in tokens.T:
            hidden = np.tanh(hidden @ self._inner + self._embedding[column] + memory.cross[0])
            logits = hidden @ self._outer
            if not self._ends:
                logits[:, self.eos_id] = -1e3
            logits -= logits.max(axis=1, keepdims=True)
            steps.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
        return np.stack(steps, axis=1).astype(np.float32), (hidden[None].astype(np.float32),)
