"""The method in PyTorch, and what server and institutions agree on. The public API is `casam`."""
