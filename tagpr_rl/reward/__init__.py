"""One response in, one RewardBreakdown out: components, weighted sum, group advantages."""
