"""Reading metrics: a frozen catalogue of PromQL, a Prometheus client and a sampler of counter increases."""
