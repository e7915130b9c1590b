"""Throughput between hosts with TLS, and what delay costs; `python -m simulations.separate_hosts`."""
