"""A stranger's walk by the README, and from the Debian package, each on a bare Debian 12; each step with its time."""
