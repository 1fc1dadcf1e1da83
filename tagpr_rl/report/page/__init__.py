"""The HTML page of a run, and its tables in the terminal."""
