"""Membership inference: attacks on releases, and figures of their success.

Every attack gives each image a score; a higher score means "more likely a training image".
casam_bench.membership.statistics evaluates the scores. A failed attack does not prove that a better attack
would fail, too.
"""
