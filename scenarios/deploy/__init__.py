"""Institutions on machines of their own: certificates and keys, the kit for a site, and all of it on one
machine for a rehearsal."""
