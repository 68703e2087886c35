"""Recipes: the file, the command line, checks across keys, the plan."""
