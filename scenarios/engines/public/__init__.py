"""Making the public files that a scenario names (casam_core/config/public_files.py)."""
