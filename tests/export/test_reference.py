"""References of engine proofs that are kept: equal when they come back, and never for other inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_asr.export.engine.reference import KEPT_FILES, cache_folder, recall_outputs
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import Outputs


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def cases_of(value: float) -> list[ProofCase]:
    rows = (np.full((3, 2), value, np.float32), np.zeros((5, 2), np.float32))
    return [ProofCase(family="real", name="two rows", features=rows)]


class Model:
    """Counts its runs."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs, self.runs = outputs, 0

    def __call__(self) -> Outputs:
        self.runs += 1
        return self.outputs


OUTPUTS: Outputs = [(np.eye(2, dtype=np.float32), np.ones((3, 2), np.float32))]


def test_kept_outputs_come_back_for_the_same_model_and_inputs_only() -> None:
    model = Model(OUTPUTS)
    recall_outputs("a", cases_of(1.0), model)
    (found,) = recall_outputs("a", cases_of(1.0), model)
    assert model.runs == 1
    for got, expected in zip(found, OUTPUTS[0], strict=True):
        np.testing.assert_array_equal(got, expected)
    recall_outputs("b", cases_of(1.0), model)
    recall_outputs("a", cases_of(2.0), model)
    assert model.runs == 3


def test_failures_are_not_kept_and_a_damaged_file_is_computed_again() -> None:
    failing, model = Model(["RuntimeError: no"]), Model(OUTPUTS)
    recall_outputs("a", cases_of(1.0), failing)
    recall_outputs("a", cases_of(1.0), failing)
    assert failing.runs == 2
    recall_outputs("a", cases_of(1.0), model)
    (kept,) = cache_folder().iterdir()
    kept.write_bytes(b"damaged")
    recall_outputs("a", cases_of(1.0), model)
    assert model.runs == 2


def test_only_the_newest_are_kept() -> None:
    for number in range(KEPT_FILES + 2):
        recall_outputs(str(number), cases_of(1.0), Model(OUTPUTS))
    assert len(list(cache_folder().iterdir())) == KEPT_FILES
