"""Decoding of Semantic IDs: ancestral sampling and beam search, free or constrained to a catalogue by a trie.

`sample` and `score_sequences` mask the logits by the trie and renormalise. `beam_search` masks *after* the log-softmax,
as Hugging Face's `generate` does with a prefix function.
"""

from adagrpo.decoding.beams import Beams, beam_search, beam_search_and_score, beam_search_both
from adagrpo.decoding.drawn_lists import Slates, draw_slates, inclusion_log_prob, rank_log_probs, slate_log_probs
from adagrpo.decoding.sampling import DeadEnd, Samples, sample, score_sequences

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
    "rank_log_probs",
    "sample",
    "score_sequences",
    "slate_log_probs",
]
