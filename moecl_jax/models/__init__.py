"""The frozen decoder and what is trained inside it."""
