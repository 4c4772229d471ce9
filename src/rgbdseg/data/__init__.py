"""Prepared trees: their description, reading, checking and caches; `rooms` makes one, `prepare` converts others."""
