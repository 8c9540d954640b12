"""One self-contained page about one or several runs (docs/report.md).

    reading.py      a run folder's documented files -> Run; studies -> their runs
    sections/       a Run, or several, -> a section of the page: figures, charts, tables
    parts.py        what a section is made of
    words.py        the wording of figures, policies and outcomes
    drawing.py      Altair charts -> inline SVG
    page.py         sections -> HTML (templates/)

No module here reads institutions/<name>/private/.
"""
