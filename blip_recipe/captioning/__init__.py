"""Image captioning with BLIP's image-grounded text decoder."""
