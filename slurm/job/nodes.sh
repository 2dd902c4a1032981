# Which nodes are good: preflight on each, all ranks in one all-reduce, and who still answers. Part of slurm/job.sh.
# shellcheck shell=bash

preflight() { # OPTION...: checks on every node; bad ones are named, excluded, and the job is requeued
  [[ $PREFLIGHT != off ]] || return 0
  local count=${#NODE_NAMES[@]} canary=$RUN/slurm/canary.$TRY word node
  ADDRESSES=$RUN/slurm/try-$TRY/preflight.txt
  word=$(printf '%s-%s-%s' "$SLURM_JOB_ID" "$TRY" "$RANDOM")
  [[ -n $DRYRUN ]] || echo "$word" > "$canary" || finish_job 1 failed "the disk is full: $canary cannot be written; make room and submit again"
  run_step preflight "$PREFLIGHT_TIMEOUT_S" train --nodes="$count" --ntasks="$count" --ntasks-per-node=1 \
    --cpus-per-task=1 --kill-on-bad-exit=0 -- "$PYTHON" -m nemo_mtdrive.cli preflight --run-dir "$RUN" \
    --canary "$canary" "$word" --least-free-gb "$MIN_FREE_GB" ${NETWORK_INTERFACE:+--interface "$NETWORK_INTERFACE"} "$@" > "$SAID"
  [[ -z $DRYRUN ]] || return 0
  for node in "${NODE_NAMES[@]}"; do
    if grep -q "^$node"$'\tok\t' "$SAID" && [[ $(cat "$canary.$node" 2> /dev/null) != "$word" ]]; then
      printf '%s\tbad\twhat it wrote to the shared %s is not seen here\n' "$node" "${canary%/*}" >> "$SAID"
    fi
  done
  rm -f "$canary" "$canary".*
  cp "$SAID" "$ADDRESSES"
  judge_nodes "preflight" "${NODE_NAMES[@]}"
}

smoke() { # all ranks' tasks in one all-reduce
  [[ $PREFLIGHT != off ]] || return 0
  local role tasks nodes per distribution list used
  read_layout training-rank
  run_step all-reduce "$PREFLIGHT_TIMEOUT_S" train --nodes="$nodes" --ntasks="$tasks" --ntasks-per-node="$per" --distribution="$distribution" \
    --nodelist="$list" --cpus-per-task="$(cpus_each "$per")" -- "$PYTHON" -m nemo_mtdrive.cli preflight --run-dir "$RUN" \
    --all-reduce "$ADDRESSES" --timeout-s "$((PREFLIGHT_TIMEOUT_S * 4 / 5))" > "$SAID"
  [[ -z $DRYRUN ]] || return 0
  cat "$SAID" >> "$RUN/slurm/try-$TRY/all-reduce.txt"
  IFS=, read -ra used <<< "$list"
  judge_nodes "all-reduce" "${used[@]}"
  grep -q $'\tok\t' "$SAID" || finish_job 1 failed "all-reduce: all nodes began it, and it did not end well: $(last_words all-reduce)"
  say "preflight: $(grep $'\tok\t' "$SAID" | cut -f 3)"
}

judge_nodes() { # WHAT NODE...: from the lines in SAID
  local what=$1 node bad=() words=() problem
  shift
  problem=$(awk -F '\t' '$2 == "run" {print $1 ": " $3; exit}' "$SAID")
  [[ -z $problem ]] || finish_job 1 failed "$what: $problem"
  grep -qE $'^[^\t]+\t(ok|bad|here)\t' "$SAID" || finish_job 1 failed "$what: no node answered: $(grep -v 'cpu binding' "$RUN/slurm/try-$TRY/$what.err" | tail -n 1)"
  for node in "$@"; do
    problem=$(awk -F '\t' -v node="$node" '$1 == node && $2 == "bad" {print $3; exit}' "$SAID")
    grep -qE "^$node"$'\t(ok|bad|here)\t' "$SAID" || problem="it did not answer within $PREFLIGHT_TIMEOUT_S s"
    [[ -z $problem ]] || { bad+=("$node"); words+=("$node: $problem"); }
  done
  ((${#bad[@]} == 0)) || requeue "$what: bad node $(IFS=';'; echo "${words[*]}")" "$(IFS=,; echo "${bad[*]}")"
}

probe() { # which nodes still answer: one srun a node, so that one that is lost takes no other along
  local node pids=() lost=() index=0
  for node in "${NODE_NAMES[@]}"; do
    timeout -k 5 "$PROBE_TIMEOUT_S" srun --overlap --input=none --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$node" true &
    pids+=($!)
  done
  for node in "${NODE_NAMES[@]}"; do
    while kill -0 "${pids[$index]}" 2> /dev/null; do pause; done
    wait "${pids[$index]}" || lost+=("$node")
    index=$((index + 1))
  done
  ((${#lost[@]} == 0)) || requeue "node lost: ${lost[*]} does not answer; $WHY" "$(IFS=,; echo "${lost[*]}")"
}
