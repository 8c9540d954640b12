"""A local web page about runs: start and follow them, look at their results, try their banks on an image.

    access.py       who may ask: the token, the host, the origin; what the browser may load
    shelf.py        the folders that were given: their runs, banks, images; nothing outside them
    started.py      runs that this studio started: `casam run` in a process of its own
    live_page.py    a run while it works
    run_pages.py    the runs, one result, two results beside each other
    explained.py    a bank, an audit log, a ledger and a policy in words
    gallery.py      the pictures that an institution drew of its own images
    prompting.py    a box or points on an image: frozen SAM and the bank side by side
    pages.py        the routes of these pages
    serve.py        the address and the server

Pages are made of the report's parts (scenarios/report/parts.py) and look like it. The studio reads run
folders, calls the Python API and starts the `casam` command. It sends nothing to other machines.
"""
