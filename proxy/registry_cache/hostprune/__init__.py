"""The Docker Engine of this host, and which of its images may go."""
