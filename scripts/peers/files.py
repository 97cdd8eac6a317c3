"""The same weights as each contender takes them: our bundle, the plain export, and its usual dynamic INT8.

Plain means what a user of the other runtimes has: PyTorch's exporter and onnxsim, none of our rewrites (batch
norm and biases where they were, relative shift, masks). Dynamic INT8 is what sherpa-onnx's own export scripts
make: `quantize_dynamic` with unsigned weights over every product.
"""

from __future__ import annotations

import contextlib
import io
import logging
from dataclasses import dataclass
from pathlib import Path

import onnx

from edge_asr.benchmark.random_models import save_random
from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.writer import onnx_metadata, write_token_files
from edge_asr.calibration import Budget, Int8Options
from edge_asr.checkpoints import Checkpoint, load_any
from edge_asr.export import CasePlan, export_bundle
from edge_asr.export.onnx_export import export_onnx
from edge_asr.export.optimize import set_metadata, simplify_graph
from edge_asr.model import ConformerCTC


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """One model for all contenders.

    Attributes:
        name: for the table.
        bundle: ours, with fp32 and int8.
        plain: folder with model.onnx and model.int8.onnx (dynamic), tokens.txt, vocab.txt, config.json.
        torch_model: in eval mode.
        has_words: whether its text means something.
    """

    name: str
    bundle: Bundle
    plain: Path
    torch_model: ConformerCTC
    has_words: bool

    @property
    def per_feature(self) -> bool:
        """Tell whether it is a model for onnx-asr, which always normalizes per feature."""
        return self.bundle.info.features.normalize == "per_feature"


def make_files(name: str, folder: Path) -> ModelFiles:
    """The files of tiny-en, or of a preset with random weights and NeMo's usual features, below `folder`."""
    if name == "tiny-en":
        checkpoint, bundle = load_any(name), Bundle.load(name)
    else:
        checkpoint = load_any(save_random(name, folder / f"{name}-checkpoint", normalize="per_feature"))
        # Of random weights neither ranges nor losses mean anything: little speech, and every group in INT8.
        any_loss = Budget(max_wer_loss=1.0, min_agreement=0.0)
        export_bundle(
            checkpoint,
            folder / name,
            precisions=("fp32", "int8"),
            int8=Int8Options(minutes=1.0, range_method="minmax", budget=any_loss),
            plan=CasePlan(random_lengths=2, max_batch=2),
        )
        bundle = Bundle.load(folder / name)
    model = checkpoint.build_model()
    return ModelFiles(
        name=name if name == "tiny-en" else f"random {name}",
        bundle=bundle,
        plain=_write_plain(checkpoint, model, folder / f"{name}-plain"),
        torch_model=model,
        has_words=name == "tiny-en",
    )


def _write_plain(checkpoint: Checkpoint, model: ConformerCTC, folder: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder.mkdir()
    config, features, vocabulary = checkpoint.model_config, checkpoint.features, checkpoint.vocabulary
    graph = simplify_graph(export_onnx(model, features.n_mels), features.n_mels)
    set_metadata(graph, onnx_metadata(folder.name, features, vocabulary, config.subsampling_factor))
    onnx.save(graph, folder / "model.onnx")
    write_token_files(folder, vocabulary, features.n_mels, config.subsampling_factor)
    logging.getLogger().setLevel(logging.ERROR)  # it recommends preprocessing, which was done
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_dynamic(folder / "model.onnx", folder / "model.int8.onnx", weight_type=QuantType.QUInt8)
    logging.getLogger().setLevel(logging.WARNING)
    return folder
