"""Chart colours, one per method: those of Okabe & Ito 2008, and a few darker ones."""

from __future__ import annotations

from collections.abc import Iterable

from adagrpo.objective import GATES

INK, QUIET, GRID, SURFACE = "#1a1a1a", "#595959", "#e3e3e3", "#ffffff"
BLUE, VERMILLION, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"
VIOLET, BROWN, GREY, TEAL, OLIVE = "#7b52ab", "#8c5a2b", "#767676", "#117a8b", "#5f7a1f"
METHODS = {  # the first that the name of an arm holds says which method it is
    **{name: GREY for name, gate in GATES.items() if gate.draws or gate.shuffled},
    "fuse": TEAL,
    "knn": OLIVE,
    "rerank": SKY,
    "ranker": SKY,
    "re-ranked": SKY,
    "no gate": INK,
    "gate": PINK,
    "adagrpo": PINK,
    "best-of-n": BROWN,
    "best_of_n": BROWN,
    "tuned": GREEN,  # distillation with the weight from validation
    "chosen-": GREEN,
    "-chosen": GREEN,
    "distill": VIOLET,
    "mixture": ORANGE,
    "grpo": VERMILLION,
    "nll": BLUE,
    "sft": INK,
    "policy": INK,
}
OTHERS = ("#a83279", "#4b5f78", "#7a6400")  # of names that are no method's, in the order in which they come
LAYERS = (PINK, "#5f7f9e", "#8da9c4", "#bccbd9", "#3d566e")  # of a stack, the first being what was admitted


def method_colors(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each name: its method's, or the next unused one.

    Example:
        >>> method_colors(["nll", "adagrpo-lambda5", "x"])
        {'nll': '#0072b2', 'adagrpo-lambda5': '#cc79a7', 'x': '#a83279'}
    """
    colors: dict[str, str] = {}
    strangers = 0
    for name in dict.fromkeys(names):
        method = next((color for key, color in METHODS.items() if key in name.lower()), None)
        colors[name] = method or OTHERS[strangers % len(OTHERS)]
        strangers += method is None
    return colors
