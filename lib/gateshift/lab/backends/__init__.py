"""The backends of the lab: REST, WebSocket and gRPC services in one process, with faults on demand."""
