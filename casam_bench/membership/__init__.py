"""What a release gives away about the images behind it: attacks, and honest figures of how well they do.

Every attack gives each image a number, higher for "was trained on". casam_bench.membership.statistics says
what the numbers are worth. Nothing here protects anything: an attack that fails is no proof that a better one
would.
"""
