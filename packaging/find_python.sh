#!/usr/bin/env bash
# Prints a Python of a version that has the headers for extensions, from PATH or pyenv: packaging/find_python.sh 3.12
set -euo pipefail
for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/"python$1"; do
  if "$python" -c "import os, sysconfig; os.stat(sysconfig.get_path('include') + '/Python.h')" 2> /dev/null; then
    command -v "$python"
    exit
  fi
done
echo "find_python: found no Python $1 with headers, neither on PATH nor of pyenv; install it, or set PYTHONS" >&2
exit 1
