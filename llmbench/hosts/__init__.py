"""Engines called through their own Python API, each in a process of its own.

Such a process may belong to another interpreter (a target's ``python`` option), so nothing in this
room imports more than the standard library and the engine itself.
"""
