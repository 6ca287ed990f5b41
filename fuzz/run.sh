#!/usr/bin/env bash
# Builds all fuzz targets with the coverage that libFuzzer looks at, and runs each.
# usage: run.sh [TARGET...]
#
# FUZZ_SECONDS   seconds for each target (default 60)
#
# What libFuzzer finds that is new goes to target/fuzz/corpus/TARGET, an input that breaks a promise to
# target/fuzz/found. `cargo fuzz run TARGET` does the same for one, where cargo-fuzz is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-60}
out=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
targets=("$@")
if [ $# = 0 ]; then
    for program in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$program" .rs)"); done
fi

bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done

# The flags of cargo-fuzz: counters at every edge, comparisons, addresses, checks of the dev profile.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Cdebug-assertions \
-Coverflow-checks -Ccodegen-units=4 -Cforce-frame-pointers"
CARGO_TARGET_DIR=$out/build cargo +nightly build --release --target "$host" \
    --manifest-path fuzz/Cargo.toml "${bins[@]}"

mkdir -p "$out/found"
failed=()
for target in "${targets[@]}"; do
    mkdir -p "$out/corpus/$target"
    log=$out/$target.log
    if "$out/build/$host/release/$target" "$out/corpus/$target" "tests/fuzz-corpus/$target" \
        -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=2048 \
        -malloc_limit_mb=512 -artifact_prefix="$out/found/$target-" -print_final_stats=1 \
        >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        cover=$(grep -oE 'cov: [0-9]+' "$log" | tail -n 1)
        echo "fuzz: $target: $runs inputs, $cover"
    else
        echo "fuzz: $target: FOUND, see $log"
        tail -n 25 "$log"
        failed+=("$target")
    fi
done
[ ${#failed[@]} = 0 ] || { echo "fuzz: FAIL: ${failed[*]}"; exit 1; }
echo "fuzz: PASS: ${#targets[@]} targets, $seconds s each"
