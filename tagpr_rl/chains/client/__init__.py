"""Requests to language models: endpoints, answer cache, retries, budget and progress."""
