"""Rescoring and search against what WeNet's and ESPnet's own code found (scripts/golden/make/*_decoder.py).

The network is the loaded checkpoint in PyTorch, so only the scores and the search are judged here; that a
bundle's graphs are this network is the proof of each export. Ids of the originals become ours, blank last.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from golden.decoders import TorchNetwork

from edge_asr.checkpoints import Checkpoint, load_any
from edge_asr.runtime.decoding.attention.ctc_prefix import CtcPrefixScorer
from edge_asr.runtime.decoding.attention.network import Memory
from edge_asr.runtime.decoding.attention.rescoring import score_texts
from edge_asr.runtime.decoding.attention.search import SearchOptions, search_texts

WENET = ("wenet-decoder", "wenet-u2pp-decoder")
CLIPS = (0, 1, 2)


class Golden:
    """One fixture: the checkpoint, its arrays, and ids of the original as ours."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint: Checkpoint = load_any(folder)
        model = self.checkpoint.build_model()
        assert model.decoder is not None
        self.left = TorchNetwork(model.decoder)
        self.right = None if model.right_decoder is None else TorchNetwork(model.right_decoder)
        self.info = json.loads((folder / "golden.json").read_text())
        self.arrays = np.load(folder / "golden.npz")
        self.blank = self.checkpoint.vocabulary.blank_id
        assert self.info["blank_id"] == 0

    def texts(self, key: str) -> list[npt.NDArray[np.int64]]:
        """Rows of an array as texts in our ids."""
        return [row[row >= 0] - 1 for row in np.atleast_2d(self.arrays[key])]

    def found(self, key: str) -> list[tuple[int, ...]]:
        """Results of a search, without their ends."""
        return [tuple(int(i) for i in text if i != self.left.eos_id) for text in self.texts(key)]

    def memory(self, network: TorchNetwork, clip: int) -> Memory:
        return network.attend(self.arrays[f"clip{clip}_enc"][0])

    def scorer(self, clip: int) -> CtcPrefixScorer:
        log_probs = self.arrays[f"clip{clip}_logp"][0]
        return CtcPrefixScorer(np.roll(log_probs, -1, axis=1), self.blank)


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Callable[[str], Golden]:
    made: dict[str, Golden] = {}
    return lambda name: made.get(name) or made.setdefault(name, Golden(golden_dir / name))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", WENET)
def test_rescoring_is_wenets(golden: Callable[[str], Golden], name: str, clip: int) -> None:
    """Scores to 1e-3, and the same text is taken."""
    fixture = golden(name)
    texts, ctc = fixture.texts(f"clip{clip}_hyps"), fixture.arrays[f"clip{clip}_ctc_scores"]
    n_found = len(texts) - 2  # the last two were not found by the search
    forward = score_texts(fixture.left, fixture.memory(fixture.left, clip), texts)
    backward = np.zeros(len(texts))
    if fixture.right is not None:
        backward = score_texts(fixture.right, fixture.memory(fixture.right, clip), texts, reverse=True)
    for k, setting in enumerate(fixture.info["decoder"]["rescoring"]):
        r, w = setting["reverse_weight"], setting["ctc_weight"]
        scores = (1 - r) * forward + r * backward + w * ctc
        np.testing.assert_allclose(scores, fixture.arrays[f"clip{clip}_rescoring_{k}"], atol=1e-3)
        # The share that means WeNet's weight ranks alike.
        share = w / (1 + w)
        mixed = (1 - share) * ((1 - r) * forward + r * backward) + share * ctc
        best = int(fixture.arrays[f"clip{clip}_rescoring_{k}_best"])
        assert int(np.argmax(mixed[:n_found])) == best


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", WENET)
def test_the_search_is_wenets(golden: Callable[[str], Golden], name: str, clip: int) -> None:
    fixture = golden(name)
    for k, setting in enumerate(fixture.info["decoder"]["beams"]):
        options = SearchOptions(**setting, ctc_weight=0.0, keep_ended=True, hopeless=None)
        found = search_texts(fixture.left, fixture.memory(fixture.left, clip), options)[0]
        assert [found.ids] == fixture.found(f"clip{clip}_beam_{k}"), setting


@pytest.mark.parametrize("clip", CLIPS)
def test_the_search_is_espnets(golden: Callable[[str], Golden], clip: int) -> None:
    """With CTC and without; the scores of the best to 1e-3."""
    fixture = golden("espnet-decoder")
    memory = fixture.memory(fixture.left, clip)
    for k, setting in enumerate(fixture.info["decoder"]["beams"]):
        ratio = setting["maxlenratio"]
        options = SearchOptions(
            beam_size=setting["beam_size"],
            ctc_weight=setting["ctc_weight"],
            length_penalty=float(setting["normalize_length"]),
            max_tokens=max(1, int(ratio * memory.n_frames)) if ratio else None,
            keep_ended=False,
        )
        found = search_texts(fixture.left, memory, options, ctc=fixture.scorer(clip))[0]
        assert found.ids == fixture.found(f"clip{clip}_beam_{k}")[0], setting
        assert found.score == pytest.approx(fixture.arrays[f"clip{clip}_beam_{k}_scores"][0], abs=1e-3)
