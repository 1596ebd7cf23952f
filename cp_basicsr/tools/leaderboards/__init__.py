"""The parts of ``python -m cp_basicsr.tools.leaderboard``.

measuring.py runs rows on images and keeps a record of each (records.py); results.py makes tables of the records,
published.py adds other people's figures, markdown.py writes them down.
"""
