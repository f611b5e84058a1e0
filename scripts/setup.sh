#!/usr/bin/env bash
# Make .venv with the exact versions of requirements.lock. No prompt, no account; quick when nothing changed.
#
#   scripts/setup.sh          what running needs: Python >= 3.12, the packages, a way to render
#   scripts/setup.sh --test   also what the tests need: chromium and ffmpeg
#   PYTHON=/path/to/python scripts/setup.sh    with an interpreter of your choice
set -euo pipefail
cd "$(dirname "$0")/.."

TOOLS=build/tools   # our own uv, when the machine has none
STAMP=.venv/.setup-stamp
export HOME="${HOME:-$PWD/build/home}"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
# Without cached bytecode importing LeRobot takes two to three times as long, at every start.
unset PYTHONDONTWRITEBYTECODE
unset VIRTUAL_ENV   # another project's environment must not receive our packages
# The machine's own certificates, where it has some: a company's proxy signs with one that uv does not ship.
if [ -s /etc/ssl/certs/ca-certificates.crt ] || [ -s /etc/pki/tls/certs/ca-bundle.crt ]; then
  export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}" UV_NATIVE_TLS="${UV_NATIVE_TLS:-1}"   # new and old name
fi

say() { echo "setup: $*"; }
stop() { echo "setup: error: $*" >&2; exit 1; }

# The interpreter's own version says whether it will do; a pyenv shim exists for versions that are not active.
usable_python() {
  "$1" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

usable_uv() { "$1" python find --help >/dev/null 2>&1; }

find_uv() {
  local candidate
  for candidate in uv "$TOOLS/bin/uv" "$HOME/.local/bin/uv"; do
    if usable_uv "$candidate"; then UV=$candidate; return; fi
  done
  say "getting uv"
  mkdir -p "$TOOLS"
  # --target needs no rights, no virtual environment, and is allowed where the system's Python is managed.
  for candidate in python3 python; do
    if "$candidate" -m pip --version >/dev/null 2>&1; then
      PIP_ROOT_USER_ACTION=ignore "$candidate" -m pip install --quiet --disable-pip-version-check --upgrade --target "$TOOLS" 'uv>=0.5' \
        && usable_uv "$TOOLS/bin/uv" && { UV=$TOOLS/bin/uv; return; }
    fi
  done
  if command -v pipx >/dev/null; then
    PIPX_HOME="$PWD/$TOOLS/pipx" PIPX_BIN_DIR="$PWD/$TOOLS/bin" pipx install --quiet 'uv>=0.5' \
      && usable_uv "$TOOLS/bin/uv" && { UV=$TOOLS/bin/uv; return; }
  fi
  stop "neither uv nor a Python with pip (or pipx) was found. Install one of them, for example
  sudo apt-get update && sudo apt-get install -y python3-pip     (Debian, Ubuntu)
  brew install uv                                                (macOS)"
}

find_python() {
  local candidate pyenv
  if [ -n "${PYTHON:-}" ]; then
    usable_python "$PYTHON" || stop "PYTHON=$PYTHON is not Python 3.12 or 3.13"
    return
  fi
  # pyenv keeps versions that are installed but not active off the PATH; its shims still say where it lives.
  pyenv=${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")}
  candidate=$(command -v python3 || true)
  case $candidate in */shims/python3) [ -d "$pyenv/versions" ] || pyenv=${candidate%/shims/python3} ;; esac
  for candidate in python3.12 python3.13 python3 python \
    "$pyenv"/versions/3.12*/bin/python "$pyenv"/versions/3.13*/bin/python; do
    if usable_python "$candidate"; then PYTHON=$candidate; return; fi
  done
  if PYTHON=$("$UV" python find '>=3.12,<3.14' 2>/dev/null) && usable_python "$PYTHON"; then return; fi
  say "getting Python 3.12"
  "$UV" python install --quiet 3.12 && PYTHON=$("$UV" python find 3.12) && usable_python "$PYTHON" && return
  stop "Python 3.12 or 3.13 is needed; none was found, and uv could not get one. Install one, for example
  pyenv install 3.12                                             (with pyenv)
  sudo apt-get update && sudo apt-get install -y python3.12      (Ubuntu 24.04)
  brew install python@3.12                                       (macOS)
and run this again, or name one: PYTHON=/path/to/python3.12 make setup"
}

# system_packages WHY PACKAGE...: install as root with apt-get, otherwise print the command and stop.
system_packages() {
  local why=$1; shift
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    say "$why: installing $*"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
  elif command -v apt-get >/dev/null; then
    stop "$why. Run
  sudo apt-get update && sudo apt-get install -y $*
and then the same command again"
  else
    stop "$why. Install $* with this system's package manager, and run the same command again"
  fi
}

renders() { .venv/bin/python -m vita_vla_cli.gl; }

check_rendering() {
  renders && return
  [ "$(uname -s)" = Linux ] || stop "no frame could be rendered; \`.venv/bin/vita-vla doctor\` says more"
  if [ -z "$(apt-cache policy libosmesa6 2>/dev/null)" ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
  fi
  if ! command -v apt-get >/dev/null || apt-cache show libosmesa6 >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
    system_packages "the simulator cannot render here" libosmesa6
  else   # newer distributions have dropped OSMesa; EGL renders in software as well
    system_packages "the simulator cannot render here" libegl1 libgl1-mesa-dri
  fi
  renders || stop "still no frame could be rendered; \`.venv/bin/vita-vla doctor\` says more"
}

has_browser() {
  local name
  for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do
    command -v "$name" >/dev/null && return
  done
  [ -x "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" ] || [ -x "/Applications/Chromium.app/Contents/MacOS/Chromium" ]
}

check_test_tools() {
  has_browser || system_packages "the tests look at the report page in a browser" chromium
  command -v ffmpeg >/dev/null || system_packages "the tests read videos" ffmpeg
}

stamp() { cat requirements.lock pyproject.toml scripts/setup.sh | cksum; echo "$PWD"; }

if [ "$(cat "$STAMP" 2>/dev/null)" = "$(stamp)" ] && .venv/bin/python -c '' 2>/dev/null; then
  [ "${1:-}" = --test ] && check_test_tools
  exit 0
fi

find_uv
find_python
say "$("$PYTHON" --version), $("$UV" --version)"
if ! usable_python .venv/bin/python; then
  rm -rf .venv
  "$UV" venv --quiet --python "$PYTHON" .venv
fi
say "installing packages (the first time: several GB, some minutes)"
"$UV" pip install --quiet --python .venv/bin/python --constraints requirements.lock --editable '.[sim,serve,dev]'
check_rendering
if [ "${1:-}" = --test ]; then check_test_tools; fi
stamp > "$STAMP"
say "done. Next: make quickstart FAST=1, or .venv/bin/vita-vla --help"
