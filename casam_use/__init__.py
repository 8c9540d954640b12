"""A finished bank in use: route and segment an image, or carry masks through a volume. No node runs this."""
