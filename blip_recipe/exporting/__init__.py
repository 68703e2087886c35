"""Export trained models to formats that run without torch (`python -m blip_recipe.export`)."""
