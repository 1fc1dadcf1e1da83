"""Text <-> tagged trace: the tag schema, the one parser and renderer, and the chain constraints."""
