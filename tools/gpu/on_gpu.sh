#!/usr/bin/env bash
# What a GPU is needed for, in order: values, the paper's sweeps, comparisons from outside, memory checks, the gate.
# usage: PYTHON=python3 STEPS="env gpu-tests" tools/gpu/on_gpu.sh OUT [options of `opbench reproduce`, for every part]
#        LIST=1 tools/gpu/on_gpu.sh OUT    prints every step with its times and runs nothing
# Without a network: pip install --no-deps --no-build-isolation -e . first.
# All steps by default; STEPS picks some. Each has an estimate in seconds (arithmetic, none was measured) and a limit of
# under ten minutes, at which it is stopped. A step that fails, is stopped, or cannot run here (exit code 77) is reported and
# the next one runs; the exit code says whether any did. A second run with the same OUT goes on with the sweeps.
set -uo pipefail
out=$1
shift
python=${PYTHON:-python3}
steps=${STEPS:-}
export OPBENCH_REQUIRE_GPU=1
mkdir -p "$out"
failed=0
known=" "

# step NAME ESTIMATE_S LIMIT_S COMMAND...
step() {
    local name=$1 estimate=$2 limit=$3 started=$SECONDS code
    shift 3
    known="$known$name "
    if [ -n "${LIST:-}" ]; then echo "$name: about $estimate s, at most $limit s: $*"; return; fi
    case " ${steps:-$name} " in *" $name "*) ;; *) return ;; esac
    echo "== $name (about $estimate s): $*"
    timeout --signal=TERM --kill-after=20 "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    case $code in
        0) echo "   ok, $((SECONDS - started)) s" ;;
        77) echo "   NOT RUN: $(tail -n 1 "$out/$name.log")"; failed=1 ;;
        124 | 137) echo "   STOPPED after $limit s; see $name.log"; failed=1 ;;
        *) echo "   exit $code; see $name.log"; failed=1 ;;
    esac
}

step env 15 60 "$python" -m opbench env --check
step gpu-tests 120 400 "$python" -m pytest -m gpu -p no:cacheprovider --junitxml "$out/gpu-tests.xml"
step operators 120 580 "$python" -m pytest tests/test_operators.py tests/test_modules.py tests/test_fused.py \
    -m "not gpu and not slow" -p no:cacheprovider
step kernels 180 580 "$python" -m pytest tests/test_kernels.py tests/test_tuning.py \
    -m "not gpu and not slow" -p no:cacheprovider

# 210 cells, some 0.5 s each: 100 launches and 200 more. The first part also measures the ceilings and compiles kernels.
step as-paper 140 400 "$python" -m opbench reproduce --out "$out/reproduce" --parts as-paper "$@"
# 2400 cells, some 0.2 s each.
for way in event-cold event-warm graph; do
    for part in module core backward; do
        step "$part-$way" 80 400 "$python" -m opbench reproduce --out "$out/reproduce" --parts "$part-$way" "$@"
    done
done
step paper-report 10 60 "$python" -m opbench report "$out/reproduce/as-paper" --paper
for op in dcnv4 dcnv4_lightweight; do
    resume=$([ ! -e "$out/fused-$op/run.json" ] || echo --resume)
    step "fused-$op" 60 300 "$python" -m opbench sweep --ops $op --providers $op=triton,$op=triton_fused,$op=torch \
        --dtypes fp16 --time-budget 0.1 --out "$out/fused-$op" $resume
done

# The sources are expected under third_party/. What is built stays under build/, for as long as the machine does.
step official-build 300 590 "$python" tools/gpu/official.py --build-only --out "$out/official"
for op in dcnv4 dcnv3; do
    for timer in cuda-event cuda-graph; do
        step "official-$op-$timer" 240 580 "$python" tools/gpu/official.py --ops $op --timer $timer \
            --out "$out/official-$op-$timer"
    done
done

step timing-check 90 300 "$python" tools/gpu/timing_check.py --out "$out/timing-check"
step sanitize-memcheck 200 580 "$python" tools/gpu/sanitize.py --tools memcheck --out "$out/sanitize"
step sanitize-racecheck 200 580 "$python" tools/gpu/sanitize.py --tools racecheck --out "$out/sanitize"

# 3 operators, 2 shapes, fp16: 6 cells; 2 sessions without and 2 with a slow-down, each of 3+3 rounds of about 15 s.
# More sessions are needed for narrow intervals; the default is 10 of each with 6+16 rounds.
step gate-selftest 380 590 "$python" -m opbench gate --selftest --ops conv3x3,dcnv3,dcnv4 \
    --shapes tools/gpu/gate_shapes.yaml --dtypes fp16 --rounds 3+3 --sessions 2 --inject 5% --out "$out/gate-selftest"

for name in $steps; do
    case $known in *" $name "*) ;; *) echo "no step is called $name; known:$known"; failed=1 ;; esac
done
exit $failed
