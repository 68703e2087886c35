"""The page of `blip-recipe demo`."""
