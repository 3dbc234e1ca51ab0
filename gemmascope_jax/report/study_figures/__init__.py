"""Figures of the studies, a file each: `draw(result)` -> figures by name.

Call inside `plotting.style()`.
"""
