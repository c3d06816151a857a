#!/bin/sh
# Evaluates the example host as a whole NixOS system: real.sh NIXPKGS [SOPS_NIX] > facts.json
# NIXPKGS and SOPS_NIX are checkouts. PKGS_FILE, if set, is a Nix file that stands in for NIXPKGS' packages
# (a function of { lib, nixpkgs }), where only lib/ and nixos/ are at hand.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ -e "${1:-}/nixos/lib/eval-config.nix" ] || { echo "say: real.sh NIXPKGS [SOPS_NIX]; NIXPKGS is a checkout of nixpkgs" >&2; exit 2; }
arguments="nixpkgs = $(cd "$1" && pwd);"
[ -z "${2:-}" ] || arguments="$arguments sopsNix = $(cd "$2" && pwd);"
[ -z "${PKGS_FILE:-}" ] || arguments="$arguments pkgsFile = $(realpath "$PKGS_FILE");"
exec nix-instantiate --eval --strict --json --read-write-mode --expr "import $here/real.nix { $arguments }"
