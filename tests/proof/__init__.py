"""The proof: cold and warm deploys on a real swarm, beside registry:2 and beside no cache at all."""
