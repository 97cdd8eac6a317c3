"""The bundle: the only contract between export and runtime.

`names` has the name of every file and tensor, `manifest` the data of bundle.json, `folder` finds, reads and
hashes a bundle, `writer` makes its small files. Names are imported when first used.
"""

from typing import TYPE_CHECKING

from edge_asr.lazy import lazy_names

if TYPE_CHECKING:
    from edge_asr.bundle.folder import Bundle as Bundle
    from edge_asr.bundle.folder import resolve_bundle_path as resolve_bundle_path

__getattr__, __dir__, __all__ = lazy_names(__name__, {"Bundle": "folder", "resolve_bundle_path": "folder"})
