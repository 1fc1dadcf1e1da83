"""Tagged reasoning chains: a teacher writes them, we segment, a labeller tags, rules keep or reject."""
