"""Read recipes, check them, and run them."""
