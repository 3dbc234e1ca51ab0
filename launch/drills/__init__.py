"""Fault drills: two processes on this machine, and everything that can happen.

`rig` starts, watches and compares; `faults` is one function for each fault;
`table` writes down what was seen.
"""
