"""tagpr_rl: an open implementation of TagPR, personalization reasoning by tag-guided RL."""

__version__ = "0.1.0"
