"""Lightning callbacks that tie the data plane to a trainer: thin, the work is in `transfer` (and `retention`).

Importing Lightning costs about 9 s, so processes that do not train use `transfer` directly.
"""
