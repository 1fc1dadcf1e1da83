"""The Ray session of a run: a private one, an existing cluster, or jobs on a remote one."""
