"""Lists over the whole catalogue, baselines, the statistics of a comparison, and the quality of a reward."""
