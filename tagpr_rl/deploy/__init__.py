"""Files that bring a recipe to a cluster: Slurm, KubeRay, SkyPilot, Docker and the Ray launcher."""
