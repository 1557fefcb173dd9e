"""Many experiments as one: every published figure in turn (``smtnet reproduce all``), and grids of runs
(``smtnet sweep``). Each is a process of its own, and what is finished stays finished.
"""
