"""Kubernetes: preflight, install, apply, verify and clean-up of the Istio side."""
