"""From a record to what the model reads: retrieval, the prompt text and its tokens."""
