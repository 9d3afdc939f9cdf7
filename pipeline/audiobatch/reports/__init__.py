"""Write the ledger's results for people and programs (manifest, workbook, page), and read reviews back.

Nothing here decides anything or is the only copy of anything: all of it can be written again from the ledger.
"""
