"""The product's work on a CUDA card, in parts; each part fails alone (card_parts.py)."""
