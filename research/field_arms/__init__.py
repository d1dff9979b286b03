"""Reward terms of other papers, registered from outside the package, at equal reward strength."""
