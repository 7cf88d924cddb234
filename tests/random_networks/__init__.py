"""Random networks, each told by its seed, and what is held of every one of them.

``python -m random_networks 7 20-40`` (with ``tests`` on the path) prints and checks those.
"""
