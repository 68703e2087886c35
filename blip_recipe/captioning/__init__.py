"""Captioning: an image in, a caption out, by BLIP's image-grounded text decoder."""
