#!/usr/bin/env bash
# Make what a release holds, in dist/: the packages, and a bill of what they install (CycloneDX, JSON).
# scripts/release.sh [EXTRA,...]   with extras of the package, such as medical,export
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The tools live apart, so that the bill names what the package needs and nothing else.
"$python" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet --disable-pip-version-check build 'cyclonedx-bom>=7'
"$work/tools/bin/python" -m build --outdir "$work/made" . >/dev/null
wheel=$(echo "$work"/made/*.whl)
"$python" -m venv "$work/user"
"$work/user/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel${1:+[$1]}"
"$work/user/bin/python" -m pip uninstall --quiet --yes pip
name=$(basename "$wheel")
bill="$work/made/${name%%-py3*}.cdx.json"
"$work/tools/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible --validate -o "$bill" "$work/user/bin/python"
mkdir -p dist
mv "$work"/made/* dist/
ls dist
