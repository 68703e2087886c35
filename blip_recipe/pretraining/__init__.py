"""Pre-training of BLIP: one network with three losses (arXiv 2201.12086, section 3.2)."""
