"""Public sets: their official downloads to the folders that the recipes read.

The table is `sets.py`; one module a family reads the downloads, and says which filter, order and numbers it follows.
"""

from adagrpo.data.public.converting import convert
from adagrpo.data.public.downloads import Download, Downloads
from adagrpo.data.public.listing import described, listing
from adagrpo.data.public.published import Check, Converted, PublicSet
from adagrpo.data.public.sets import SETS

__all__ = ["SETS", "Check", "Converted", "Download", "Downloads", "PublicSet", "convert", "described", "listing"]
