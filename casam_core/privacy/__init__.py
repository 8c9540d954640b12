"""Differential privacy: the mechanisms that add noise to releases, and the accounting of their cost.

The decisions are elsewhere: an institution's policy allows a release (client/release/permission.py) and its
ledger records the cost (client/release/ledger.py). docs/privacy.md says what is protected and what is not.
"""
