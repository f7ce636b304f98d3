# Sourced by the scripts at the root: make the virtual environment they share, or reuse it.
# After `ensure_venv` or `ensure_venv EXTRA`, $VENV/bin holds the package and its tools.
# PYTHON=python3.12 chooses the interpreter of a new environment.

VENV=.venv-meddet

ensure_venv() {
  local extra=${1:-}
  local python=${PYTHON:-python3}
  local stamp="$VENV/installed${extra:+-$extra}"

  if [ -e "$stamp" ] && [ "$stamp" -nt pyproject.toml ]; then
    return
  fi
  if [ ! -x "$VENV/bin/python" ]; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
      echo "error: Python 3.10 or newer is needed; set PYTHON=python3.12 or the like" >&2
      return 1
    fi
    # Where the system's Python comes without ensurepip, its own pip fills the environment.
    "$python" -m venv "$VENV" 2>/dev/null || {
      rm -rf "$VENV"
      "$python" -m venv --without-pip "$VENV"
      "$python" -m pip --python "$VENV/bin/python" install --quiet pip
    }
  fi
  echo "installing into $VENV; PyTorch is large, this takes a few minutes the first time"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -e ".${extra:+[$extra]}"
  touch "$stamp"
}
