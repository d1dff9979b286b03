"""What inference engines need to write the items of a catalogue: vLLM, SGLang, or a client of either.

`adagrpo export` copies this package into the folder of a model as `catalog_engines`, beside the catalogue. So nothing
here imports anything else of ours: torch, numpy and the standard library are all that an engine's process has.
"""

__all__: list[str] = []
