"""edge-asr: Conformer speech recognition from PyTorch to the edge, proven at every step.

`edge_asr.runtime` runs bundles without PyTorch; `edge_asr.export` makes and proves them;
`edge_asr.training` trains. Importing this package imports none of them.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
