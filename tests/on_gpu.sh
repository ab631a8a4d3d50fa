#!/usr/bin/env bash
# What a GPU is needed for, in order: values, then the paper's sweep, then cores with both timers and both directions.
# usage: PYTHON=python3 STEPS="env gpu-tests" tests/on_gpu.sh OUT [extra options for every sweep]; all steps by default.
# Without a network: pip install --no-deps --no-build-isolation -e . first.
# A step that fails is reported and the next one runs; the exit code says whether any did.
set -uo pipefail
out=$1
shift
python=${PYTHON:-python3}
steps=${STEPS:-env gpu-tests operators paper paper-report graph core fused}
export OPBENCH_REQUIRE_GPU=1
mkdir -p "$out"
failed=0

step() {
    local name=$1
    shift
    case " $steps " in *" $name "*) ;; *) return ;; esac
    echo "== $name: $*"
    if "$@" >"$out/$name.log" 2>&1; then echo "   ok"; else echo "   exit $?; see $name.log"; failed=1; fi
}

step env "$python" -m opbench env
step gpu-tests "$python" -m pytest -m gpu -p no:cacheprovider --junitxml "$out/gpu-tests.xml"
step operators "$python" -m pytest tests/test_operators.py tests/test_kernels.py tests/test_modules.py tests/test_fused.py -p no:cacheprovider
step paper "$python" -m opbench sweep --dtypes fp32,tf32,fp16 --out "$out/paper" "$@"
step paper-report "$python" -m opbench report "$out/paper" --paper
step graph "$python" -m opbench sweep --dtypes fp16 --timer cuda-graph --out "$out/graph" "$@"
step core "$python" -m opbench sweep --level core --direction fwd,bwd --dtypes fp16 --out "$out/core" "$@"
step fused "$python" -m opbench sweep --ops dcnv4,dcnv4_lightweight --providers dcnv4=all,dcnv4_lightweight=all \
    --dtypes fp16 --out "$out/fused" "$@"
exit $failed
