"""Reaching a live box from another process of the same user: see ``docs/explanation/decisions/0017``.

``listening`` and ``wire`` import next to nothing: a quick ``kavach run`` listens, too.
"""
