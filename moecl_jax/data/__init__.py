"""Tasks: where they are defined, read, split, tokenised and batched."""
