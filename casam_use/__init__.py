"""What no node runs: a finished bank in use, for images and volumes, and how a public frame is made."""
