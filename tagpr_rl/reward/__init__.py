"""One response in, one RewardOutput out: components, weighted sum, advantages of its group and steps."""
