"""Image-text retrieval with BLIP.

It uses two of BLIP's three modes (arXiv 2201.12086, section 3.2): the unimodal encoders, trained by image-text
contrastive learning (ITC), and the image-grounded encoder, trained by image-text matching (ITM).
"""
