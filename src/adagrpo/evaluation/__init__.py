"""Full-catalogue evaluation, statistics of comparisons, and the quality of a reward."""
