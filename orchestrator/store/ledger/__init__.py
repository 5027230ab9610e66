"""Every change of state of studies, cells, tickets, trials and workers, each one method and one
transaction.
"""
