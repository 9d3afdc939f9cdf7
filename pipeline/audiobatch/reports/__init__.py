"""Views of the ledger for people and programs: manifest, workbook, page; and the way back in, the review.

Nothing here decides or remembers: every function takes rows and writes a view, or reads a view and says
what a reviewer wrote in it. All of it can be made again at any time.
"""
