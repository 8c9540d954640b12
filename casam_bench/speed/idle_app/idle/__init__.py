"""The do-nothing Flower app."""
