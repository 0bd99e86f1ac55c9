#!/bin/sh
# Prints the Python that .venv is made with: the newest from 3.11 to 3.14 on the PATH that starts and can make a venv.
# `find_python.sh COMMAND` looks at that one alone, and says what is wrong with it. `find_python.sh --all` prints the
# path of one of each version, oldest first, with those of pyenv that its shims do not lead to.
NEEDED="Python 3.11 to 3.14 is needed: make serve PYTHON=/path/to/python3.13"

# a command that is there may not work: pyenv has one for each version, also for those that it is told to leave alone
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null; }
suits() { case $1 in 3.11 | 3.12 | 3.13 | 3.14) ;; *) false ;; esac; }
makes_venvs() { "$1" -c 'import ensurepip, venv' 2> /dev/null; }

if [ "${1:-}" = --all ]; then
  for version in 3.11 3.12 3.13 3.14; do
    for python in "python$version" python3 python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
      if [ "$(version_of "$python")" = "$version" ] && makes_venvs "$python"; then
        "$python" -c 'import sys; print(sys.executable)'
        break
      fi
    done
  done
elif [ -n "${1:-}" ]; then
  version=$(version_of "$1") || { echo "$1 does not start. $NEEDED" >&2; exit 1; }
  suits "$version" || { echo "$1 is Python $version. $NEEDED" >&2; exit 1; }
  makes_venvs "$1" || { echo "$1 cannot make a venv: install its venv package (on Debian: python$version-venv)." >&2; exit 1; }
  echo "$1"
else
  for python in python3.14 python3.13 python3.12 python3.11 python3 python; do
    version=$(version_of "$python") && suits "$version" || continue
    makes_venvs "$python" && { echo "$python"; exit; }
    without="$without $python cannot make a venv: install its venv package (on Debian: python$version-venv)."
  done
  echo "No suitable Python was found.$without $NEEDED" >&2
  exit 1
fi
