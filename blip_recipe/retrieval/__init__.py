"""Matching and retrieval: which texts belong to which pictures.

Two of BLIP's three modes (arXiv 2201.12086, section 3.2): unimodal encoders, whose features are compared (image-text
contrastive learning, ITC), and the image-grounded encoder, which judges a pair (image-text matching, ITM).
"""
