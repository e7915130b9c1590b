"""The networks: a backbone divided into Uppers and a Lower, the Adaptation Net, and what crosses the cut.

Loaded when first used, since it brings in torch; `psl_flower.models.architectures` does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from psl_flower.models.split import AdaptationNet, PatchSplitNet

__all__ = ["AdaptationNet", "PatchSplitNet"]

__getattr__, __dir__, _ = lazy_loader.attach(__name__, submod_attrs={"split": __all__})
