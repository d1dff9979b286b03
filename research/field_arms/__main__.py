"""Registers the terms, then measures: what reads recipes is imported after that."""

from importlib import import_module

from research.field_arms.terms import register_all

if __name__ == "__main__":
    register_all()
    import_module("research.command").run(import_module("research.field_arms.measure").main)
