"""The verbs, where the rooms meet: load, mine, synthesize, filter, mix, train, evaluate, compare, search, explain, export.

Each takes values or folders, does one step, writes one folder (whole or not at all) and returns an object that prints well and knows
its fingerprint. The same inputs give the finished folder back; a killed run continues. The command line is a thin layer over these.
"""
