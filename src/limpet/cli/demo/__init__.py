"""``limpet demo``: training that is killed again and again, and loses nothing.

One rule holds this package together: the parent (``supervisor``) kills and counts, the child (``child``)
trains and saves, and all that passes between them is one settings object on stdin and messages on stdout.
"""
