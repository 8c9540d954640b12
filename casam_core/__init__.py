"""The method in PyTorch, and the protocol between server and institutions. The public API is `casam`."""
