"""Sweeps: lists of overrides, grouped into runs that share what can be shared.

`grid` makes the lists, `plan` the runs, `state` says how far they are, and
`collect` draws what is finished. `launch.sweep` is the binary.
"""
