"""Rows -> batches, in an order that is a pure function of seed and step.

`order` says which row comes when, `stream` gathers, `live` computes instead of
reading, `joint` puts sites side by side, `feed` copies to the devices.
"""
