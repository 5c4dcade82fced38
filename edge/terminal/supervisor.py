"""The scripts that start a sandbox's programs, and that answer edge from inside. Linux only."""

from edge.terminal.bubblewrap import CONTENTS
from edge.terminal.shell import ASSIGNMENTS

# Runs outside: opens the pipes and files between edge and the sandbox before root privileges are dropped. The pipes
# have no names, because the sandbox could read them in /proc/2/fd. Errors of bubblewrap go to edge. The environment is
# empty, because the sandbox can read bubblewrap's in /proc/1/environ. If memory runs out, Linux ends these first.
OPEN = """
cd / && unset OLDPWD && exec 3< "$2" 4> "$3" 10> "$4" 5< "$1/in.tar" 6< "$1/passwd" 7< "$1/group" 8< "$1/hosts" \
  9< "$1/seccomp" 11< "$1/arguments" 12< "$1/begin" 13< "$1/again.tar" 14< "$1/beside.tar" \
  15< "$1/inputrc" 16< "$1/contents" 2>&4 || exit
{ [ -z "$5" ] || echo 0 > "$5/cgroup.procs"; } 2> /dev/null
{ echo 1000 > /proc/self/oom_score_adj; } 2> /dev/null
shift 5 && exec "$@"
"""

# Runs inside, before any of the model's commands: limits, the work folder, then one shell after another. awk tests the
# limit on processes, because it fails at once; bash would try again for seconds.
SUPERVISOR = r"""
exec 2>&1
trap : INT QUIT HUP TERM TSTP
no() { printf 'no %s\n' "$1" >&4; sleep 5; exit 1; }
# Permissions of folders come last: tar makes links with absolute targets at its end.
unpack() { tar -x -p --delay-directory-restore --no-same-owner -C "$1" -f - ./; }
start=$4
packed='the work folder cannot be unpacked: is --disk large enough?'
# Each file with what changes if the file does. Names cannot contain a NUL; what follows the last \1 is not a name.
state=(find . ! -type d -printf '%p\001%C@ %i %s %m\0')
name='s/\x01[^\x01]*$//'
# What a program writes through mmap changes no time of a file in memory. But opening a file changes its access time,
# also then: of the files with a new one, the contents count too.
opened=(find . -type f -printf '%p\001%A@\0')
first=~/.edge-first
unpack "$WORK" <&5 || no "$packed"
(export LC_ALL=C; cd "$WORK" && "${state[@]}" | sort -z > "$first" && "${opened[@]}" | sort -z > "$first-opened") ||
  no 'the work folder cannot be read'
# The second archive writes into folders that the first made; it sets their permissions again.
find "$WORK" -type d ! -perm -200 -exec chmod u+w {} +
unpack "$WORK" <&13 || no "$packed"
[ -z "$5" ] || { mkdir "$5" && unpack "$5" <&14; } || no 'the files beside the work folder cannot be unpacked'
exec 5<&- 13<&- 14<&-
ulimit -HSu "$1" && ulimit -HSd "$2" && ulimit -HSf "$3" && ulimit -HSn 768 && ulimit -HSq 0 &&
  ulimit -HSi 1024 && ulimit -HSl 1024 && ulimit -HSr 0 && ulimit -HSe 0 ||
  no 'the limits cannot be set'
one_more=$( (ulimit -Su 1; exec awk 'BEGIN { "echo more" | getline x; print x }') 2> /dev/null)
[ "$one_more" != more ] || no 'the limit on processes does not hold here (Linux 5.14 or newer?)'
printf 'ready\n' >&4
read -r -u 3 _ || exit 1
# Prints the lines of a list that are not in a sorted one: what does not agree with the begin of the session.
others() {
  [ -r "$1" ] && sort -z | comm -z -13 --nocheck-order "$1" - || sort -z
}
# Sends the names of files that are as they were first, then an archive of all folders and all other files.
save() {
  set -o pipefail
  export LC_ALL=C
  cd "$WORK" || { chmod u+rwx "$WORK" && cd "$WORK"; } || return 2
  [ -r "$first" ] || first=/dev/null
  mapfile -d '' -t written < <("${opened[@]}" | others "$first-opened" | sed -z "$name" |
    xargs -0 -r sha256sum -z -- | others @CONTENTS@ | sed -z 's/^.\{66\}//' | sort -z)
  written() { [ "${#written[@]}" = 0 ] || printf '%s\0' "${written[@]}"; }
  "${state[@]}" | sort -z | comm -z -12 --nocheck-order "$first" - | sed -z "$name" | sort -z |
    comm -z -23 --nocheck-order - <(written) || unread=2
  printf '\0'
  { find . -type d -print0 && { "${state[@]}" | others "$first" | sed -z "$name" && written; } | sort -zu; } |
    tar -c --format=gnu -b 1 --hard-dereference --no-recursion --null -T - -f -
  set -- "${PIPESTATUS[@]}"
  [ "$1" = 0 ] && return "${unread:-$2}"
  return 2
}
# Sends the commits that the outside does not know, as a git bundle after its size; 0 if there are none.
commits() {
  cd "$WORK" && made=~/.edge-commits && rm -f "$made" &&
    printf '^%s\n' $1 | git bundle create -q "$made" --ignore-missing --branches HEAD --stdin &&
    size=$(stat -c %s "$made") && printf '%d\n' "$size" && head -c "$size" "$made" || printf '0\n'
  rm -f "$made"
}
# Runs a program in the work folder, and sends its exit status: 124 or 137 if it took too long.
run() {
  cd "$start" && exec timeout -k 5 "$1" "$2" > "$3" 2>&1 3<&- 4>&-
}
# Ends all processes but edge's own: process 1, the script, what it started, and this one. Fails if others stay.
end() {
  for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    found=
    for place in /proc/[0-9]*; do
      pid=${place#/proc/} parent= state=
      while read -r name value _; do
        case $name in
          State:) state=$value ;;
          PPid:) parent=$value && break ;;
        esac
      done < "$place/status"
      case " 1 $$ $BASHPID " in *" $pid "*) continue ;; esac
      case "$state,$parent" in Z,* | X,* | *,$$ | ,*) continue ;; esac
      kill -9 "$pid" && found=$pid
    done
    [ -n "$found" ] || return 0
  done
  return 1
}
serve() {
  while read -r -u 3 word token rest; do
    case $word in
      save)
        printf 'edge %s\n' "$token"
        (save)
        printf '%d\n' "$?"
        ;;
      commits)
        printf 'edge %s\n' "$token"
        (commits "$rest")
        ;;
      run)
        printf 'edge %s\n' "$token"
        (run $rest)
        printf '%d\n' "$?"
        ;;
      show)
        printf 'edge %s\n' "$token"
        size=-1
        [ -f "$rest" ] && shown=$(head -c 65536 "$rest" | base64 -w 0) && size=${#shown}
        printf '%d\n' "$size"
        [ "$size" = -1 ] || printf '%s' "$shown"
        ;;
      end)
        printf 'edge %s\n' "$token"
        (end)
        printf '%d\n' "$?"
        ;;
      unlock) chmod -R u+rwX "$WORK" ;;
    esac
  done < /dev/null >&4 2> /dev/null
}
set -m
serve &
while cd "$start"; do
  @ASSIGNMENTS@ bash --noprofile --norc +o histexpand -i 3<&- 4>&-
  [ -t 1 ] || exit
  stty sane
  printf '[the shell has ended; this is a new one]\n'
  sleep 0.2
done
""".replace("@ASSIGNMENTS@", ASSIGNMENTS).replace("@CONTENTS@", CONTENTS)
