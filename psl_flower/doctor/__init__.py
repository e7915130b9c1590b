"""Checks of a node or a server before a run: faults and remedies. Nothing is changed, no run is started.

Each module looks at one thing and returns findings; none of them raises for what it finds.
"""
