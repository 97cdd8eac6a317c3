"""Chooses which groups of a model become INT8: each is measured alone, then as many as the budget allows.

The rule can be reproduced from the table in report.md: begin with every group in INT8; while the loss is over
the budget, the group that adds the most divergence per multiply-add goes back to float32. Loss is measured on
clips outside the calibration. They are few, so a WER loss counts only if its 95 % interval is above 0, and
only four fifths of the allowed frame changes are used, which leaves a margin for other speech. If speech is
given to evaluate on, and the choice is over the budget there, one group more goes back. Divergence ranks the
groups, because it changes long before a word does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_asr.calibration.forms import WHOLE_CLIPS, GraphForm
from edge_asr.calibration.int8_groups import Group, group_nodes
from edge_asr.calibration.measure import Int8Loss, Reference, time_graphs
from edge_asr.errors import ConfigError
from edge_asr.graph.mapped import MappedGraph
from edge_asr.graph.session import CpuSession
from edge_asr.proof.stages import Progress

if TYPE_CHECKING:
    import onnx

F32Array = npt.NDArray[np.float32]

#: Makes the graph in which the given groups are INT8.
Quantize = Callable[[Sequence[Group]], "onnx.ModelProto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What INT8 may lose.

    Attributes:
        max_wer_loss: allowed absolute loss, as a fraction; checked only if clips have texts.
        min_agreement: fraction of frames that must keep their most likely token.
    """

    max_wer_loss: float = 0.003
    min_agreement: float = 0.985

    def __post_init__(self) -> None:
        if not self.max_wer_loss >= 0:
            raise ConfigError(
                f"max_wer_loss is {self.max_wer_loss}; give a fraction of 0 or more, such as 0.003"
            )
        if not 0 <= self.min_agreement <= 1:
            raise ConfigError(f"min_agreement is {self.min_agreement}; give a fraction from 0 to 1")

    @property
    def aim(self) -> Budget:
        """A stricter budget for the choice of groups: 80 % of the allowed frame changes, for other speech."""
        return replace(self, min_agreement=0.2 + 0.8 * self.min_agreement)

    def exceeded_by(self, loss: Int8Loss, *, if_significant: bool = False) -> str | None:
        """Say what is over the budget, in words; None if nothing is.

        Args:
            loss: the measured loss.
            if_significant: accept a WER loss whose 95 % interval reaches down to 0; for few words.
        """
        significant = loss.wer_loss_low is not None and loss.wer_loss_low > 0
        over = loss.wer_loss is not None and loss.wer_loss > self.max_wer_loss
        if over and (significant or not if_significant):
            assert loss.wer_loss is not None
            return f"WER loss {100 * loss.wer_loss:.2f} points, at most {100 * self.max_wer_loss:.2f} allowed"
        if loss.agreement < self.min_agreement:
            return (
                f"{100 * loss.agreement:.2f} % of the frames keep their most likely token, "
                f"at least {100 * self.min_agreement:.2f} % required"
            )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One choice of INT8 groups and what it costs.

    Attributes:
        int8: the groups in INT8; all others are float32.
        loss: loss against float32.
        size_bytes: size of the graph's file.
        time_ratio: median encoder time over that of float32, one thread, in the same run.
        refused: the loss on the evaluation speech was over the budget.
    """

    int8: tuple[Group, ...]
    loss: Int8Loss
    size_bytes: int
    time_ratio: float
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """How the choice was made.

    Attributes:
        budget: what was allowed.
        multiply_adds: multiply-adds of a clip of `clip_s` seconds, by group.
        clip_s: length of the clip that was timed.
        alone: one candidate per group, with that group alone in INT8.
        steps: candidates with all groups first, then with one group less each.
    """

    budget: Budget
    multiply_adds: dict[Group, int]
    clip_s: float
    alone: dict[Group, Candidate]
    steps: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        """Return the first step that meets the aim, else the first within the budget, else the last.

        A step that was refused is taken only if it is the last.
        """
        for budget in (self.budget.aim, self.budget):
            for step in self.steps:
                if not step.refused and budget.exceeded_by(step.loss, if_significant=True) is None:
                    return step
        return self.steps[-1]


def choose_groups(
    model: onnx.ModelProto,
    quantize: Quantize,
    reference: Reference,
    timed: F32Array,
    clip_s: float,
    budget: Budget,
    progress: Progress | None = None,
    accept: Callable[[tuple[Group, ...]], bool] = lambda _: True,
) -> Sensitivity:
    """Measure every group, then leave out as few as the budget demands.

    Args:
        model: the float32 graph.
        quantize: makes a candidate.
        reference: the float32 run over clips outside the calibration set.
        timed: features [T, n_mels] of the clip that is timed.
        clip_s: length of that clip in seconds.
        budget: what may be lost.
        progress: called after each candidate.
        accept: tells whether a choice that meets the aim also holds on the evaluation speech.
    """
    groups: tuple[Group, ...] = tuple(group_nodes(model))
    n_done = 0

    def measure(int8: tuple[Group, ...]) -> Candidate:
        nonlocal n_done
        with MappedGraph(quantize(int8)) as candidate:  # only its sessions take memory
            float32_s, int8_s = time_graphs([float32, candidate], timed, form=reference.form)
            loss = reference.measure(candidate)
        n_done += 1
        if progress is not None:
            progress(n_done, 2 * len(groups))
        return Candidate(
            int8=int8,
            loss=loss,
            size_bytes=candidate.size_bytes,
            time_ratio=float(np.median(int8_s) / np.median(float32_s)),
        )

    multiply_adds = count_multiply_adds(model, timed, reference.form)
    with MappedGraph(model) as float32:
        alone = {group: measure((group,)) for group in groups}
        costliest_first = sorted(groups, key=lambda g: -alone[g].loss.divergence / max(multiply_adds[g], 1))
        left = groups
        steps = [measure(left)]
        for group in costliest_first[:-1]:
            if budget.aim.exceeded_by(steps[-1].loss, if_significant=True) is None:
                if accept(left):
                    break
                steps[-1] = replace(steps[-1], refused=True)
            left = tuple(g for g in left if g != group)
            steps.append(measure(left))
    return Sensitivity(
        budget=budget, multiply_adds=multiply_adds, clip_s=clip_s, alone=alone, steps=tuple(steps)
    )


def count_multiply_adds(
    model: onnx.ModelProto, features: F32Array, form: GraphForm = WHOLE_CLIPS
) -> dict[Group, int]:
    """Count the multiply-adds of every group on one clip, from the shapes of its runs.

    Args:
        model: float32 graph.
        features: [T, n_mels].
        form: the kind of graph.
    """
    import onnx

    group_of = {name: group for group, names in group_nodes(model).items() for name in names}
    nodes = [node for node in model.graph.node if node.name in group_of]
    weights = {i.name: tuple(i.dims) for i in model.graph.initializer}
    shaped = onnx.ModelProto()
    shaped.CopyFrom(model)
    del shaped.graph.output[:]
    wanted = dict.fromkeys(t for n in nodes for t in (*n.input[:2], n.output[0]) if t not in weights)
    for tensor in wanted:  # only the shape of each tensor leaves the graph, not the tensor
        shaped.graph.node.append(onnx.helper.make_node("Shape", [tensor], [f"{tensor}_shape"]))
        shaped.graph.output.append(
            onnx.helper.make_tensor_value_info(f"{tensor}_shape", onnx.TensorProto.INT64, [None])
        )
    counts: dict[Group, int] = dict.fromkeys(group_of.values(), 0)
    with MappedGraph(shaped) as graph:
        del shaped
        with CpuSession(graph) as session:
            for feed in form.feeds(model, [features]):
                found = session.run(None, feed)
                shapes = dict(zip(wanted, (tuple(map(int, shape)) for shape in found), strict=True)) | weights
                for node in nodes:
                    counts[group_of[node.name]] += _multiply_adds(node, shapes)
    return counts


def _multiply_adds(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    n_outputs = int(np.prod(shapes[node.output[0]]))
    if node.op_type == "Conv":  # weight [C_out, C_in / groups, ...]
        return n_outputs * int(np.prod(shapes[node.input[1]][1:]))
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return n_outputs * shapes[node.input[0]][-2 if transposed else -1]
