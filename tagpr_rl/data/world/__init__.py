"""The embedded world: invented people with rules that decide what each of them answers."""
