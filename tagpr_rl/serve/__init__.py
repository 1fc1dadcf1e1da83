"""Servers: the live view of a run, and PRMU over HTTP. Importing them loads no torch."""
