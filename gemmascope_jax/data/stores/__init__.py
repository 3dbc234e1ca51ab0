"""Windows of tokens -> rows of activations on disk.

`harvest` runs the model (`forward`) and writes a `store`, whose shards lie in a
folder that `files` opens, here or on an object store.
"""
