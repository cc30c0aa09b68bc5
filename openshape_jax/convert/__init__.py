"""Checkpoints of the PyTorch original and of Hugging Face folders: read into ours, written from ours.

`load.read` gives (weights, metadata, step) of a foreign file, folder or repository, `save.write` the way
back, `info.describe` what a file says of itself. PyTorch is needed for none of them.
"""
