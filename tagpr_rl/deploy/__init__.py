"""What a run needs of a cluster, and files that run a recipe there: Slurm, KubeRay, SkyPilot, Docker."""
