"""Experiments on users: what was planned, who is in which arm, and what the logs then say.

the plan, and the hash it is frozen by     `adagrpo.experiments.plan`
users to arms                              `adagrpo.experiments.allocation`
a row a user from the exposure log         `adagrpo.experiments.units`
does each arm have its share of users      `adagrpo.experiments.sample_ratio`
effects and fixed intervals                `adagrpo.experiments.effects`
intervals for those who look daily         `adagrpo.experiments.anytime`
users and days that it takes               `adagrpo.experiments.duration`
ship, harm, inconclusive, invalid          `adagrpo.experiments.outcome`
"""
