"""Deployment: certificates and keys, kits for institutions and operator, the gateway, and a rehearsal of all
of it on one machine."""
