"""APISIX: readers of its configuration, one model, and how it chooses a route."""
