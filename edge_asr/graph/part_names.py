"""Names of the parts of a Conformer in the nodes and weights of an exported graph.

The exporter calls a node after the PyTorch module that made it, such as
`encoder.layers.3.attention.by_shift/MatMul`. Modules that only an export has get their names from here
(edge_asr.export.inference_form), and the INT8 groups and rewrites find nodes by the same names
(edge_asr.calibration). The names of edge_asr.model are repeated here; a test compares them
with the modules of an inference form.
"""

from __future__ import annotations

#: Modules of edge_asr.model.
SUBSAMPLING = "encoder.subsampling"
HEAD = "head"
FEED_FORWARDS = ("feed_forward_in", "feed_forward_out")
ATTENTION = "attention"
CONVOLUTION = "convolution"
#: Within the subsampling.
SUBSAMPLING_PROJECTION = "out"
#: Within the attention.
ATTENTION_PROJECTIONS = ("qkv", "out")
#: Within the convolution.
POINTWISE = ("pointwise_in", "pointwise_out")
DEPTHWISE = "depthwise"

#: The first convolution of the subsampling, with the mask as a second channel.
FIRST_CONVOLUTION = "first"
#: Within the attention: the table of positions by distance, and the product with it.
DISTANCE_TABLE = "position"
SHIFTED_PRODUCT = "by_shift"
#: Weights of the table, for the sines and the cosines.
ODD_WEIGHT = "odd"
EVEN_WEIGHT = "even"
#: Within the attention, instead of both in a graph that becomes INT8: scores by angles.
ANGLE_PRODUCT = "by_distance"
