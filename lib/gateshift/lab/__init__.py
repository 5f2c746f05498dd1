"""The rehearsal lab: a real control plane, Istio, Envoy and Prometheus on this machine's loopback."""
