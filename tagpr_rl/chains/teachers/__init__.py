"""Teachers that write untagged reasoning chains: language models, rules, and the embedded world's own."""
