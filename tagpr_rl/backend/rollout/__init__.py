"""Generation with vLLM: servers, agent loops, weight transfer, offline engines and saved responses."""
