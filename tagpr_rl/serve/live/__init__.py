"""The report of a run, served while the run grows."""
