"""The convolution module that a configuration asks for."""

from torch import nn

from edge_asr.model.config import ConformerConfig
from edge_asr.model.convolution.base import Convolution
from edge_asr.model.convolution.group_norm import GroupNormConvolution
from edge_asr.model.convolution.wenet import WenetConvolution


def convolution_from_config(config: ConformerConfig) -> nn.Module:
    """The convolution module that the configuration names; all are called as `Convolution.forward`."""
    if config.conv_padding == "before_pointwise":
        return WenetConvolution(config)
    if config.conv_norm == "group_norm":
        return GroupNormConvolution(config)
    return Convolution(config)
