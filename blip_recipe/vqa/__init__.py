"""Visual question answering with BLIP's image-grounded encoder and decoder."""
