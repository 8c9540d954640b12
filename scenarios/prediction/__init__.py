"""Use a bank: segment an image, or carry boxes on one slice through a volume."""
