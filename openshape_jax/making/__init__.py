"""Training targets of raw shapes, in stages: pictures, captions, chosen texts, retrieved texts, features.

Every stage reads what those before it left in a work folder and adds a file or folder of its own.
"""
