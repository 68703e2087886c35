"""The model card: facts, callback, rendering, pictures."""
