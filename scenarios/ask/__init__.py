"""What another policy would give: institutions that remember what they computed replay a run under it."""
