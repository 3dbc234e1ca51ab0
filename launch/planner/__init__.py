"""What a run will cost, before anything starts.

`accelerators` has published peaks, `costs` the arithmetic of a config, `paper`
compares it with Gemma Scope's figures, `simulate` runs servers and trainers as
events where arithmetic does not reach, and `page` shows all of it.
"""
