"""Log-mel features: whole clips and streams, bit-stable between the two."""

from typing import TYPE_CHECKING

from edge_asr.lazy import lazy_names

if TYPE_CHECKING:
    from edge_asr.runtime.features.extractor import FeatureExtractor as FeatureExtractor
    from edge_asr.runtime.features.extractor import FeatureStream as FeatureStream

__getattr__, __dir__, __all__ = lazy_names(
    __name__, {"FeatureExtractor": "extractor", "FeatureStream": "extractor"}
)
