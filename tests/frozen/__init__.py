"""Files as earlier versions wrote them: every later version opens them, or refuses them by name.

Each folder holds what one version left behind, as archives: `interrupted`, a federation whose server lost
power after its second stage, and `summed`, one that finished a secure sum. `python -m tests.frozen NAME`
makes the folder NAME, for a release that changes a format. Existing folders never change.
"""
