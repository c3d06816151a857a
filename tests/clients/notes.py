"""What the figures do not say themselves; written by hand, each from a run."""

NOTES = """\
- **429**: containerd (and dockerd with its store) asks again at once, up to twelve requests for one pull.
  The cache answers them itself: upstream sees one or two.
- **429**: podman, buildah and skopeo sleep for as long as `Retry-After` says, and then try again, several times.
- **Upstream down or hanging**: dockerd with overlay2 goes on to Docker Hub.
  What it tells the user is what became of that, not what the cache said.
- **Upstream hanging, something new**: dockerd asks by HEAD and then by GET, containerd asks three times.
  Each question waits for `REQUEST_TIMEOUT`, until three of them have failed and the cache answers at once.
- **zstd:chunked**: podman and buildah fetch such a layer by several ranges in one request.
- **skopeo list-tags** does not look into registries.conf: it has to be told the cache's own address.
- **cosign 3** signs with a bundle among the referrers.
  `cosign tree`, and `cosign verify` of older signatures, ask for `sha256-….sig`, `.att` and `.sbom` tags.
  Upstream's 404 of them is the answer while upstream is away, but not beyond a restart of the cache.
- **CRI** has no way to ask for another platform, and cosign verifies the index.
"""
