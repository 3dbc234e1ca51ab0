"""Weight formats: one module each, and `layout` that reads from them all."""
