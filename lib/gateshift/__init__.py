"""gateshift: runbooks that move live traffic from APISIX to Istio Gateway/Envoy, and back."""

__version__ = "0.1.0"
