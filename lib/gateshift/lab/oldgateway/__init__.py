"""A stand-in for APISIX: its Admin API, routing, metrics, and the plugins the sample configuration uses.

APISIX itself (OpenResty) cannot run in the lab. This program is not APISIX: it is what a migration sees of
it. A configuration with a plugin that it does not know is refused, so nothing passes by being ignored.
"""
