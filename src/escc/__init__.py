"""escc: from torch graphs to the instructions of a sparse-CNN accelerator, and the machine to run them on."""

from __future__ import annotations

__version__ = "0.1.0"
