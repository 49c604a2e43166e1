#!/bin/sh
# SPDX-License-Identifier: MIT
# Train every run of a grid file (docs/sweeps.md), with one SFT stage, one token cache and one reference pass; end with a comparison page and a table.
# usage: sweep.sh GRID.json [SCORE-COMMAND ...]
#   SCORE-COMMAND RUN_DIR is called for every finished run; the first line that it prints is the run's score.
#   BDPO_TRAIN   the program (build/bdpo-train)
#   BDPO_LAUNCH  what starts it, such as "mpirun -np 4" or "srun -K1"
#   SLURM_ARRAY_TASK_ID  train this run alone, counted from 0, after its SFT stage
# Started again after whatever end it goes on where it was. Exit codes: 0 all done; 1 some runs failed; 2 the grid or a config is wrong, nothing was begun;
# 75 stopped by a signal after saving.
set -u
grid=${1:?usage: sweep.sh GRID.json [SCORE-COMMAND ...]}
shift
bdpo=${BDPO_TRAIN:-build/bdpo-train}
list=$("$bdpo" sweep "$grid") || exit $?
out=$(printf '%s\n' "$list" | head -n 1)
runs=$(printf '%s\n' "$list" | tail -n +2 | cut -d ' ' -f 2)
stopping=0 child=''
trap 'stopping=1; [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null' USR1 TERM INT

state_of() { # of a run's directory: running, done, stopped, failed, or nothing
    sed -n 's/.*"state": *"\([a-z]*\)".*/\1/p' "$out/$1/status.json" 2>/dev/null | head -n 1
}
last_line() { grep -v '^ *$' "$out/logs/$1.log" | tail -n 1; }

train() { # train NAME: until it ends; its exit code in $code
    log=$out/logs/$1.log
    while :; do
        before_bytes=0
        [ ! -f "$log" ] || before_bytes=$(wc -c <"$log")
        # a launcher is several words
        # shellcheck disable=SC2086
        ${BDPO_LAUNCH:-} "$bdpo" --config "$out/configs/$1.json" >>"$log" 2>&1 </dev/null &
        child=$!
        wait "$child"
        code=$?
        # a signal ends `wait` before the run has ended
        while kill -0 "$child" 2>/dev/null; do
            wait "$child"
            code=$?
        done
        child=''
        # not every launcher passes codes on
        if [ "$code" -ne 0 ] && [ -n "${BDPO_LAUNCH:-}" ] && [ "$(state_of "$1")" = stopped ]; then code=75; fi
        if [ "$stopping" -eq 1 ] && [ "$code" -ne 0 ]; then code=75; fi
        # what an earlier sweep.sh started may have outlived it, and elements of an array share an SFT stage, whose log all of them write
        if [ "$code" -eq 2 ] && tail -c "+$((before_bytes + 1))" "$log" | grep -q 'error: in use by'; then
            echo "$1: another process trains it; waiting"
            sleep 2
            continue
        fi
        return 0
    done
}

end_if_stopped() {
    [ "$code" -eq 75 ] || [ "$stopping" -eq 1 ] || return 0
    echo 'stopped; start again to go on'
    exit 75
}

said() { # said NAME: it is done, and where its reference came from
    if [ "$before" = "done" ]; then
        echo "$1: finished already"
    else
        echo "$1: done$(sed -n 's/^reference: \([^(]*\) (.*/; reference: \1/p' "$out/logs/${1##* }.log" | tail -n 1)"
    fi
}

stage() { # stage SFT: the model that runs start from; fails where there is none
    [ "$1" != - ] || return 0
    case " $good " in *" $1 "*) return 0 ;; esac
    case " $bad " in *" $1 "*) return 1 ;; esac
    before=$(state_of "$1")
    train "$1"
    end_if_stopped
    if [ "$code" -eq 0 ]; then
        good="$good $1"
        said "$1"
    else
        bad="$bad $1"
        echo "$1: FAILED with exit code $code: $(last_line "$1")"
        return 1
    fi
}

score() { # score NAME COMMAND...
    name=$1
    shift
    if [ $# -eq 0 ] || [ -s "$out/scores/$name" ]; then return 0; fi
    if "$@" "$out/$name" >"$out/scores/$name.tmp" 2>>"$out/logs/$name.log"; then
        mv "$out/scores/$name.tmp" "$out/scores/$name"
    else
        echo "$name: the score command failed: $(last_line "$name")"
        return 1
    fi
}

finish() { # the page and the table, of what there is
    (
        set --
        for name in $runs; do
            if [ -f "$out/$name/config.json" ] && [ $# -lt 64 ]; then set -- "$@" "$out/$name"; fi
        done
        [ $# -eq 0 ] || "$bdpo" report "$@" --out "$out/report.html"
    )
    "$bdpo" sweep "$grid" --csv "$out/sweep.csv" && echo "wrote $out/sweep.csv"
}

ended() { # has every run ended, well or not?
    for name in $runs; do
        case $(state_of "$name") in done | failed) ;; *) return 1 ;; esac
    done
}

good='' bad='' failed='' index=0
total=$(printf '%s\n' "$runs" | wc -l)
while read -r sft name; do
    index=$((index + 1))
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ] && [ "$index" -ne $((SLURM_ARRAY_TASK_ID + 1)) ]; then continue; fi
    if ! stage "$sft"; then
        failed="$failed $name"
        echo "[$index/$total] $name: not begun: $sft failed"
        continue
    fi
    before=$(state_of "$name")
    [ "$before" = "done" ] || rm -f "$out/scores/$name"
    train "$name"
    end_if_stopped
    if [ "$code" -ne 0 ]; then
        failed="$failed $name"
        echo "[$index/$total] $name: FAILED with exit code $code: $(last_line "$name")"
        continue
    fi
    said "[$index/$total] $name"
    score "$name" "$@" || failed="$failed $name"
done <<END
$(printf '%s\n' "$list" | tail -n +2)
END
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ] && [ "$SLURM_ARRAY_TASK_ID" -ge "$total" ]; then
    echo "there is no run $SLURM_ARRAY_TASK_ID; the grid has $total, counted from 0" >&2
    exit 2
fi
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || ended; then finish || failed="$failed table"; fi
[ -z "$failed" ] || {
    echo "failed:$failed; logs are in $out/logs"
    exit 1
}
