"""Replicas that share what they fetch: leases in Redis say who asks upstream, the others follow that one's flight.

Neither Redis nor a peer is needed to answer a pull, and neither is trusted for content: each replica hashes what it
stores, and goes to upstream by itself where the others cannot help.
"""
