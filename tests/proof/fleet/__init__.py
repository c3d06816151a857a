"""The proof of a fleet: a swarm of two hosts that pull through two replicas, which share one Redis and one bucket."""
