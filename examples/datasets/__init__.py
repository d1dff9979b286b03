"""Public sets: their official downloads to the folders that the recipes read.

The table is `sets.py`; one module a family reads the downloads, and says which filter, order and numbers it follows.
"""

from examples.datasets.converting import convert
from examples.datasets.downloads import Download, Downloads
from examples.datasets.listing import described, listing
from examples.datasets.published import Check, Converted, PublicSet
from examples.datasets.sets import SETS

__all__ = ["SETS", "Check", "Converted", "Download", "Downloads", "PublicSet", "convert", "described", "listing"]
