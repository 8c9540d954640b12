"""A local web page about runs: start and follow them, look at their results, try their banks on an image.

Pages are made of the report's parts (scenarios/report/parts.py) and look like it. The studio reads run
folders, calls the Python API and starts the `casam` command. It sends nothing to other machines.
"""
