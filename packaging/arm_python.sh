#!/usr/bin/env bash
# A Python for aarch64 that runs here under qemu-user, from Debian's packages, without root and without installing any:
#   packaging/arm_python.sh SUITE PYTHON FOLDER      (bookworm 3.11; trixie 3.13)
# FOLDER/usr/bin/python is the program: a script, so a process that it starts runs under qemu as well.
set -euo pipefail
suite=$1 version=$2
mkdir -p "$3"
folder=$(cd "$3" && pwd)
apt=$folder/apt
mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
: > "$apt/status"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -E '/debian/?$' | sort -u | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$apt/sources.list"
options=(-qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Install-Recommends=false
  -o APT::Sandbox::User="" -o Dir::State="$apt/state" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache"
  -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=-)
apt-get "${options[@]}" update
apt-get "${options[@]}" install --download-only --yes "python$version" libstdc++6
for package in "$apt"/cache/archives/*.deb; do dpkg-deb --extract "$package" "$folder"; done
[ -e "$folder/lib" ] || ln -s usr/lib "$folder/lib"  # of packages that no longer know /lib
rm -rf "$apt"

python=$folder/usr/bin/python
printf '#!/bin/sh\nexec qemu-aarch64 -L "%s" -0 "$0" "%s" "$@"\n' "$folder" "$python$version" > "$python"
chmod +x "$python"
"$python" --version
