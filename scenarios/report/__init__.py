"""One self-contained page about one or several runs (docs/report.md).

    reading.py      a run folder's documented files -> Run; studies -> their runs
    timeline.py     events -> what each institution did in each stage
    quality.py, routing.py, privacy.py, costs.py, record.py    Run -> a section: figures, charts, tables
    comparison.py   several Runs -> sections
    drawing.py      Altair charts -> inline SVG
    page.py         sections -> HTML (templates/)

Nothing here reads below institutions/<name>/private/.
"""
