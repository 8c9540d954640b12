"""One self-contained page about one or several runs (docs/report.md): folders are read (reading.py), become
sections (sections/), and these become HTML (page.py). No module here reads institutions/<name>/private/.
"""
