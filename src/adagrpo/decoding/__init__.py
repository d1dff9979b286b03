"""Writing Semantic IDs with a policy: ancestral sampling and beam search, free or held to a catalogue by a trie.

    sample           draws with replacement           `adagrpo.decoding.sampling`
    score sequences  of given codes, with gradients   `adagrpo.decoding.sampling`
    beam search      the most probable sequences      `adagrpo.decoding.beams`

A trie narrows sampling and search in different ways, on purpose. `sample` and `score_sequences` mask the logits and
renormalise, because a policy gradient needs the probabilities of the very distribution that was sampled from.
`beam_search` rules continuations out *after* the log-softmax and does not renormalise, as Hugging Face's `generate`
does with a prefix function, so that items are ranked by the policy's own probability; a hypothesis whose siblings are
ruled out gains nothing from it.

Many open implementations let a row run on unconstrained when its prefix is not in the trie. Here that is `DeadEnd`.
"""

from adagrpo.decoding.beams import Beams, beam_search, beam_search_and_score, beam_search_both
from adagrpo.decoding.drawn_lists import (
    Slates,
    draw_slates,
    inclusion_log_prob,
    place_log_probs,
    slate_log_probs,
)
from adagrpo.decoding.hypotheses import DeadEnd
from adagrpo.decoding.sampling import Samples, sample, score_sequences

__all__ = [
    "Beams",
    "DeadEnd",
    "Samples",
    "Slates",
    "beam_search",
    "beam_search_and_score",
    "beam_search_both",
    "draw_slates",
    "inclusion_log_prob",
    "place_log_probs",
    "sample",
    "score_sequences",
    "slate_log_probs",
]
