# Two commands do it all: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Hundreds of processes start in the tests: each would compile every package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test fast check fmt lint docs pictures sbom soak soak-fleet bench bench-quick verify verify-short verify-fleet clients client-daemons proof-daemons fleet-daemons daemons lock install uninstall clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Only from make's own command line: some desktops have a variable USERNAME of theirs.
given = $(if $(filter command,$(firstword $(origin $(1)))),$(2) $($(1)))

run: $(VENV)/run.stamp  ## start the cache on 127.0.0.1:5000, its content in ./cache (USERNAME=… PASSWORD_FILE=…)
	$(BIN)/registry-cache serve --cache-dir cache --log-format console $(call given,USERNAME,--username) $(call given,PASSWORD_FILE,--password-file)

# Packages of Python and of Debian side by side: neither needs the other, and both wait for the network.
test:  ## everything: lint, types, tests, the real daemons among them
	@$(MAKE) --no-print-directory -j 2 $(VENV)/dev.stamp daemons
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder --durations 25 -m "not dist"

fast: $(VENV)/dev.stamp  ## what needs no daemon, starts no program and takes no time: under a minute
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not daemon and not program and not slow"

check: $(VENV)/check.stamp  ## one test: make check T=tests/test_oci.py (or T="-k digest")
	$(BIN)/pytest -q $(or $(T),$(error name a test: make check T=tests/test_oci.py))

fmt: $(VENV)/dev.stamp  ## format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/dev.stamp  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/dev.stamp  ## write docs/commands.md, docs/configuration.md and the manual pages from the program itself
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/manual.py

pictures: $(VENV)/dev.stamp daemons  ## take the README's pictures anew: the page, a cold and a warm pull (as root; STATES=DIR: every state of the page)
	$(BIN)/python -m tests.pictures $(if $(STATES),--states $(STATES))

site: $(VENV)/dev.stamp  ## the documentation as a site, into dist/site; links and anchors are checked
	$(BIN)/python packaging/site.py dist/site

sbom: $(VENV)/dev.stamp  ## the bill of materials of what is installed (CycloneDX), into dist/sbom.cdx.json
	$(BIN)/python packaging/sbom.py dist/sbom.cdx.json

dist: $(VENV)/dev.stamp  ## wheel, sdist, Debian package, image, SBOM and checksums, into dist/ (as root, on Debian)
	@sh tests/install-daemons.sh mmdebstrap
	$(BIN)/python packaging/dist.py dist

dist-test: dist  ## each file of make dist installed and used: bare Debian, dockerd, podman, pipx, uv
	@sh tests/install-daemons.sh docker-registry dockerd docker containerd iptables debootstrap podman lintian skopeo
	$(BIN)/pytest -q -m dist

soak: $(VENV)/dev.stamp daemons  ## mixed pulls under random trouble (MINUTES=5), then check every invariant
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),5)
	FUZZ_SECONDS=$$(($(or $(MINUTES),5) * 60)) $(BIN)/pytest -q tests/web/test_fuzz.py tests/web/test_fuzz_manifests.py

soak-fleet: $(VENV)/dev.stamp daemons  ## the same of a fleet: replicas, Redis and bucket die and come back (MINUTES=5)
	$(BIN)/python -m tests.fleet.soak --minutes $(or $(MINUTES),5)

BENCHMARKS := throughput latency cold crowd scale eviction registries fleet

bench: $(VENV)/bench.stamp daemons  ## measure against the peers, into docs/benchmarks (about an hour)
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

bench-quick: $(VENV)/bench.stamp daemons  ## a glance at the same, about 4 minutes, kept out of docs/benchmarks
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --quick || exit 1; done

verify:  ## the whole proof: cold and warm deploys on a real swarm (as root, under 8 minutes; LATENCY=30 ms, BANDWIDTH=100 Mbit/s, ROUNDS=3)
	@$(MAKE) --no-print-directory -j 2 $(VENV)/dev.stamp proof-daemons
	$(BIN)/python -m tests.proof --report . --latency $(or $(LATENCY),30) --bandwidth $(or $(BANDWIDTH),100) --rounds $(or $(ROUNDS),3)

verify-short:  ## its short form, which is in make test too
	@$(MAKE) --no-print-directory -j 2 $(VENV)/dev.stamp proof-daemons
	$(BIN)/python -m tests.proof --short

verify-fleet:  ## the proof of a fleet: two replicas, Redis, a bucket and a swarm of two hosts, into docs/fleet.md (as root; LATENCY, BANDWIDTH)
	@$(MAKE) --no-print-directory -j 2 $(VENV)/dev.stamp fleet-daemons
	$(BIN)/python -m tests.proof.fleet --report . --latency $(or $(LATENCY),30) --bandwidth $(or $(BANDWIDTH),100)

clients:  ## Debian's newest clients pull through the cache, into docs/clients.md (as root, about 10 minutes; CLIENTS=podman,crane)
	@$(MAKE) --no-print-directory -j 2 $(VENV)/dev.stamp client-daemons
	$(BIN)/python -m tests.clients $(if $(CLIENTS),--only $(CLIENTS),--report .)

client-daemons:
	@sh tests/install-daemons.sh docker-registry debootstrap ip

fleet-daemons: proof-daemons
	@sh tests/install-daemons.sh redis-server radosgw ceph-mon ceph-osd

proof-daemons:
	@sh tests/install-daemons.sh docker-registry dockerd docker containerd ctr iptables ip zstd unpigz

daemons:  ## install what the tests run against (as root; else those tests are skipped)
	@sh tests/install-daemons.sh

lock:  ## pin the dependencies anew (needs pip-tools)
	pip-compile -q --extra fleet --extra check --extra dev --generate-hashes --allow-unsafe --strip-extras --no-header \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements-dev.lock pyproject.toml
	pip-compile -q --extra fleet --extra check --extra dev --extra bench --generate-hashes --allow-unsafe --strip-extras --no-header \
	  -c requirements-dev.lock \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements-bench.lock pyproject.toml
	pip-compile -q --extra fleet --extra check --generate-hashes --allow-unsafe --strip-extras --no-header -c requirements-dev.lock \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements-check.lock pyproject.toml
	pip-compile -q --extra fleet --generate-hashes --allow-unsafe --strip-extras --no-header -c requirements-dev.lock \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements.lock pyproject.toml
	pip-compile -q --generate-hashes --allow-unsafe --strip-extras --no-header -c requirements-dev.lock \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements-build.lock packaging/build.in

install:  ## as root: the program, systemd units and example settings (PREFIX=/usr/local, SYSCONFDIR=/etc, DESTDIR=)
	@PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' DESTDIR='$(DESTDIR)' PYTHON='$(PYTHON)' sh packaging/install.sh install

uninstall:  ## undo that; settings and content stay
	@PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' DESTDIR='$(DESTDIR)' PYTHON='$(PYTHON)' sh packaging/install.sh uninstall

clean:  ## remove what was made here; the cache's content stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "registry-cache needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.11 run"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing. On Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# --no-deps: the locks name everything, and pip 23 takes longer to find that out than to install it.
# --no-build-isolation: what builds the program has hashes too, and nothing else is fetched for it.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps
$(VENV)/run.stamp: $(VENV)/venv.stamp requirements.lock requirements-build.lock pyproject.toml
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --require-hashes -r requirements-build.lock
	$(PIP) --no-index --no-build-isolation -e .
	@touch $@

# --no-compile: most of these are never imported by one test, and compiling them takes as long as all the rest.
$(VENV)/check.stamp: $(VENV)/venv.stamp requirements-check.lock requirements-build.lock pyproject.toml
	$(PIP) --no-compile --require-hashes -r requirements-check.lock
	$(PIP) --require-hashes -r requirements-build.lock
	$(PIP) --no-index --no-build-isolation -e .
	@touch $@ $(VENV)/run.stamp

$(VENV)/dev.stamp: $(VENV)/venv.stamp requirements-dev.lock requirements-build.lock pyproject.toml
	$(PIP) --no-compile --require-hashes -r requirements-dev.lock
	$(PIP) --require-hashes -r requirements-build.lock
	$(PIP) --no-index --no-build-isolation -e .
	@touch $@ $(VENV)/check.stamp $(VENV)/run.stamp

$(VENV)/bench.stamp: $(VENV)/dev.stamp requirements-bench.lock
	$(PIP) --require-hashes -r requirements-bench.lock
	@command -v nginx >/dev/null 2>&1 || apt-get install -y -qq --no-install-recommends nginx >/dev/null || \
	  echo "nginx is missing: it is left out"
	@touch $@
