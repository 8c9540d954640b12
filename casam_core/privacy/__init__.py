"""Mechanisms that limit what a release says about one person, and the arithmetic of what they cost.

Nothing here decides: an institution's policy does (client/release/permission.py), its ledger remembers
(client/release/ledger.py), and docs/privacy.md says what is protected and what is not.
"""
