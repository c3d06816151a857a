#!/bin/sh
# The real programs that tests run against, from Debian's packages. Without root, or elsewhere: says what is missing;
# the tests that need it skip themselves. With arguments: of these programs only.
set -eu
missing=""
only=" $* "
need() {
  case "$only" in "  " | *" $1 "*) ;; *) return 0 ;; esac
  command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}
need docker-registry docker-registry
need dockerd docker.io
need docker docker.io
need docker-compose docker-compose
need skopeo skopeo
need podman "podman runc"
need umoci umoci
need containerd containerd
need ctr containerd
need wrk wrk
need iptables iptables
need ip iproute2
need debootstrap debootstrap
need make make
need zstd zstd
need unpigz pigz # dockerd unpacks with it where it is; Docker's own packages bring it along
need systemd-analyze systemd
need nix-instantiate nix-bin
need chromium chromium
need promtool prometheus
need prometheus prometheus
need mandoc mandoc
need redis-server redis-server
need radosgw radosgw
need ceph-mon ceph-mon
need ceph-osd ceph-osd
# Only where they are asked for: make dist, make dist-test.
case "$only" in *" mmdebstrap "*) need mmdebstrap mmdebstrap ;; esac
case "$only" in *" lintian "*) need lintian lintian ;; esac
[ -x /bin/busybox ] || missing="$missing busybox-static"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "not installed:$missing (as root on Debian, make test installs them; the tests that need them are skipped)"
  exit 0
fi
echo "installing for the tests:$missing"
# A package must not start a daemon of its own beside the ones that the tests start.
if [ ! -e /usr/sbin/policy-rc.d ]; then
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
