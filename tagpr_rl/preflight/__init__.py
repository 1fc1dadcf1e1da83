"""What is wrong with a recipe, its files and its machine, before a run starts. Imports no torch and starts nothing."""
