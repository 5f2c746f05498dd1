"""Istio's objects: which version knows what, how to build them, and how Envoy would read them back."""
