#!/bin/bash
# all.sh [NAME...]: from nothing to a cluster that runs, with images in its registry (push.sh NAME...). What is there
# already is left as it is.
set -euo pipefail
cd "$(dirname "$0")"
./install.sh
./build.sh
./up.sh
./push.sh "$@"
