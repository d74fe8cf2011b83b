# Removes the lab named by $1 if its owner dies without doing so.
# Standard input is a pipe whose other end the owner alone holds: it writes
# "done" after it has cleaned up itself; end of file without that is its death.
trap '' HUP INT TERM QUIT
read -r word
[ "$word" = done ] && exit 0

# The owner's last `ip` may still be at work, so one pass is not enough.
for pass in 1 2 3; do
    for netns in /run/netns/"$1".*; do
        [ -e "$netns" ] || continue
        # A process may just be starting another one.
        for try in 1 2 3 4 5 6 7 8 9; do
            pids=$(ip netns pids "${netns##*/}")
            [ -n "$pids" ] || break
            kill -9 $pids
        done
    done
    for netns in /run/netns/"$1".*; do
        [ -e "$netns" ] && ip netns del "${netns##*/}"
    done
    rm -rf "/run/$1"
    sleep 0.3
done
