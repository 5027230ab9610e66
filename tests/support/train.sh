# A training run in a language of its own: overrides in, JSON lines out. The first attempt of the cell a=1 fails for what passes.
for word in "$@"; do
    case $word in a=*) a=${word#a=} ;; esac
done
[ "$a" = 1 ] && [ "$ORCHESTRATOR_TRIAL_ATTEMPT" = 1 ] && exit 75
echo "{\"step\": 1, \"score\": $a}"
echo "{\"step\": 2, \"score\": $a.5, \"words\": \"$*\"}"
