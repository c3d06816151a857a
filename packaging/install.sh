#!/bin/sh
# make install, make uninstall: the program in a virtual environment of its own, and systemd's files.
# DESTDIR stands in front of every path that is written, and of none that is written into a file.
set -eu
cd "$(dirname "$0")/.."
: "${PREFIX:=/usr/local}" "${SYSCONFDIR:=/etc}" "${DESTDIR:=}" "${PYTHON:=python3}"
die() { echo "registry-cache: $*" >&2; exit 1; }

case "$PREFIX$SYSCONFDIR" in *[!A-Za-z0-9/._+-]*) die "PREFIX and SYSCONFDIR: allowed are letters, digits and / . _ + -" ;; esac
case "$PREFIX" in /*) ;; *) die "PREFIX: '$PREFIX': allowed is an absolute path such as /usr/local" ;; esac
case "$DESTDIR" in '' | /*) ;; *) die "DESTDIR: '$DESTDIR': allowed is an absolute path" ;; esac

venv=$PREFIX/lib/registry-cache
program=$PREFIX/bin/registry-cache
example=$PREFIX/share/doc/registry-cache
# Where systemd looks beside /usr/lib: /usr/local/lib. For any other prefix it is only /etc.
case "$PREFIX" in
  /usr | /usr/local) lib=$PREFIX/lib ;;
  *) lib=/etc ;;
esac
case "$lib" in /etc) units=/etc/systemd/system ;; *) units=$lib/systemd/system ;; esac
unit_names="registry-cache.service registry-cache-prune.service registry-cache-prune.timer"
settings="registry-cache.toml registry-cache-prune.toml"
dropin=$units/registry-cache.service.d/10-backoff.conf
# Where the shells look below any prefix (bash-completion, zsh's default fpath below /usr/local, fish's vendor folder).
completions="bash:$PREFIX/share/bash-completion/completions/registry-cache
zsh:$PREFIX/share/zsh/site-functions/_registry-cache
fish:$PREFIX/share/fish/vendor_completions.d/registry-cache.fish"

# Sections 1 and 5, as docs/manual.py wrote them.
manual=$PREFIX/share/man

# Whether this is the system that runs, and not a folder that becomes one.
live() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }
have() { command -v "$1" >/dev/null 2>&1; }
writable() {
  { mkdir -p "$DESTDIR$PREFIX" && [ -w "$DESTDIR$PREFIX" ]; } 2>/dev/null ||
    die "$DESTDIR$PREFIX cannot be written: run make $1 as root"
}

check_python() {
  have "$PYTHON" || die "PYTHON: $PYTHON is not there. On Debian: apt-get install python3 python3-venv"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "Python 3.11 or newer is needed; this is $("$PYTHON" --version). Try: make install PYTHON=python3.11"
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
    die "Python's venv module is missing. On Debian: apt-get install python3-venv"
  base=$("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')
  case "$base" in
    /root/* | /home/* | /run/user/* | /tmp/*)
      die "PYTHON: $PYTHON is below $base, which the service does not see. Try: make install PYTHON=/usr/bin/python3" ;;
  esac
}

# Made beside the old one, with the paths that it will have: an upgrade that breaks off changes nothing.
make_venv() {
  new=$DESTDIR$venv.new
  trap 'rm -rf "$new"' EXIT
  rm -rf "$new"
  "$PYTHON" -m venv "$new"
  echo "Installing the program and its libraries in $DESTDIR$venv"
  "$new/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes -r requirements.lock
  # What builds the program goes again; it has hashes as well, and nothing else is fetched for the build.
  "$PYTHON" -m venv "$new/build"
  "$new/build/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes \
    -r requirements-build.lock
  "$new/build/bin/pip" wheel --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation \
    --wheel-dir "$new/build/dist" .
  # By its name: of a file, pip notes the path, which is not the one that it will have.
  "$new/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-index --no-deps \
    --find-links "$new/build/dist" registry-cache
  rm -rf "$new/build"
  "$new/bin/pip" uninstall --quiet --disable-pip-version-check --yes setuptools pip
  rm -rf "$new/share" # what the wheel has for pipx; it is put where man looks
  rm -f "$new"/bin/activate* "$new"/bin/Activate*
  find "$new" -name __pycache__ -type d -prune -exec rm -rf {} +
  for file in "$new/pyvenv.cfg" "$new"/bin/*; do
    [ -L "$file" ] || sed -i "s|$new|$venv|g" "$file"
  done
  # For packages: files are of the time of their source (byte code remembers it).
  if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then find "$new" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +; fi
  # The service cannot write byte code; -s and -p make tracebacks name the final path.
  "$PYTHON" -m compileall --invalidation-mode timestamp -q -j 0 -s "$new" -p "$venv" "$new/lib"
  chmod -R u=rwX,go=rX "$new"
  rm -rf "$DESTDIR$venv"
  mv "$new" "$DESTDIR$venv"
  trap - EXIT
}

put() { # FROM TO: with this installation's paths in it
  mkdir -p "$DESTDIR$(dirname "$2")"
  sed -e "s|/usr/local/bin/registry-cache|$program|g" -e "s|/etc/registry-cache|$SYSCONFDIR/registry-cache|g" "$1" >"$DESTDIR$2"
  chmod 0644 "$DESTDIR$2"
}

put_completions() { # by the program itself, with -I: not the one in this folder
  for each in $completions; do
    mkdir -p "$DESTDIR$(dirname "${each#*:}")"
    "$DESTDIR$venv/bin/python" -I -B -m registry_cache completion "${each%%:*}" >"$DESTDIR${each#*:}"
    chmod 0644 "$DESTDIR${each#*:}"
  done
}

manual_pages() { (cd packaging/man && find . -name '*.[15]') }

case "${1:-}" in
  install)
    check_python
    writable install
    make_venv
    mkdir -p "$DESTDIR$PREFIX/bin"
    ln -sfn ../lib/registry-cache/bin/registry-cache "$DESTDIR$program"
    put_completions
    for page in $(manual_pages); do put "packaging/man/$page" "$manual/$page"; done
    for unit in $unit_names; do put "packaging/systemd/$unit" "$units/$unit"; done
    put packaging/systemd/sysusers.conf "$lib/sysusers.d/registry-cache.conf"
    put packaging/systemd/tmpfiles.conf "$lib/tmpfiles.d/registry-cache.conf"
    for name in $settings; do
      put "packaging/$name" "$example/$name"
      [ -e "$DESTDIR$SYSCONFDIR/$name" ] || put "packaging/$name" "$SYSCONFDIR/$name"
    done
    # RestartSteps= is known since systemd 254; older ones log a complaint about it.
    version=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    rm -f "$DESTDIR$dropin"
    if [ "${version:-0}" -ge 254 ]; then put packaging/systemd/backoff.conf "$dropin"; fi
    if [ -z "$DESTDIR" ]; then
      if have systemd-sysusers; then systemd-sysusers "$lib/sysusers.d/registry-cache.conf"; fi
      if have systemd-tmpfiles; then systemd-tmpfiles --create "$lib/tmpfiles.d/registry-cache.conf"; fi
    fi
    if live; then
      systemctl daemon-reload
      systemctl try-restart registry-cache.service
      echo "Settings: $SYSCONFDIR/registry-cache.toml. Start with: systemctl enable --now registry-cache.service"
      echo "The prune, off until you want it: systemctl enable --now registry-cache-prune.timer"
    fi
    ;;
  uninstall)
    writable uninstall
    if live; then systemctl disable --now --quiet registry-cache-prune.timer registry-cache.service 2>/dev/null || true; fi
    rm -rf "$DESTDIR$venv" "$DESTDIR$example"
    rm -f "$DESTDIR$dropin" "$DESTDIR$program" "$DESTDIR$lib/sysusers.d/registry-cache.conf" "$DESTDIR$lib/tmpfiles.d/registry-cache.conf"
    for unit in $unit_names; do rm -f "$DESTDIR$units/$unit"; done
    for page in $(manual_pages); do rm -f "$DESTDIR$manual/$page"; done
    for each in $completions; do rm -f "$DESTDIR${each#*:}"; done
    rmdir "$DESTDIR$(dirname "$dropin")" 2>/dev/null || true # the operator's own drop-ins stay
    if live; then systemctl daemon-reload; fi
    echo "Kept: $SYSCONFDIR/registry-cache*.toml, /var/cache/registry-cache, /var/lib/registry-cache, the user registry-cache"
    ;;
  *) die "say install or uninstall" ;;
esac
