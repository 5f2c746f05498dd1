"""Client traffic of the lab: users behind caching resolvers, over HTTP, HTTPS, WebSocket and gRPC."""
