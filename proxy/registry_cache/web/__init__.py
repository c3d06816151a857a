"""The HTTP face: /v2/ for clients, /_stats, /_health and /metrics for operators."""
