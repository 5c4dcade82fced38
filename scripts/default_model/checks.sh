# Functions for the checks of the requests. The judge reads this file before each check.
# $OUT: the file with what the commands printed, errors included. $CWD: the folder in which the shell ended.
# $SHELL_STATE: the shell's variables and aliases at its end, as `declare -p` and `alias -p` print them.
# The work folder is the current folder. A check is right if its last command succeeds, and stops at the first that fails.

# The lines of the output without colours, carriage returns, spaces at the ends, and empty lines.
plain() { sed -E 's/\x1b\[[0-9;]*[A-Za-z]//g; s/\r//g; s/^[[:space:]]+//; s/[[:space:]]+$//; /^$/d' "$OUT"; }

# no COMMAND…: the command fails. (`set -e` ignores a plain `!`.)
no() { if "$@"; then return 1; fi; }

# says REGEX…: for each extended regular expression there is a line of the output that contains it.
says() { local r; for r; do plain | grep -Eq -e "$r" || return 1; done; }

# never REGEX…: no line of the output contains any of them.
never() { local r; for r; do if plain | grep -Eq -e "$r"; then return 1; fi; done; }

# prints TEXT: the output is this text; white space at the ends of lines and empty lines do not count.
prints() { [ "$(plain)" = "$(printf '%s\n' "$1" | sed -E 's/^[[:space:]]+//; s/[[:space:]]+$//; /^$/d')" ]; }

# shows FILE: the output is the contents of the file.
# `more` without a terminal writes the name of the file between two lines of colons first.
shows() {
  [ -s "$1" ] &&
    diff -q <(sed -E 's/[[:space:]]+$//' "$1") <(sed -E '1{/^:{10,}/{N;N;d}}; s/[[:space:]]+$//' "$OUT") > /dev/null
}

# nums N…: the numbers in the output are exactly these, in this order. Names of files with digits count too.
nums() { [ "$(plain | grep -Eo '[0-9]+([.][0-9]+)?' | paste -sd ' ')" = "$*" ]; }

# The names in a listing, one a line: the last word of each line (of `a -> b` the first), without ./, the work folder's
# path and a slash at the end. Lines "total N", "." and ".." do not count.
listed() {
  plain | sed -E '/^total [0-9.]+[KMG]?$/d; s/ -> .*//; s/.*[[:space:]]//' |
    sed -E "s#^$PWD(/|\$)##; s#^\\./##; s#[/*@|=]\$##; /^\\.{0,2}\$/d; s#^['\"](.*)['\"]\$#\\1#"
}

# names NAME…: the output lists exactly these names, in any order.
names() { [ "$(listed | sort -u)" = "$(printf '%s\n' "$@" | sort -u)" ]; }

# order NAME…: the output lists exactly these names in this order.
order() { [ "$(listed)" = "$(printf '%s\n' "$@")" ]; }

# set_of LINE…: the lines of the output are exactly these, in any order.
set_of() { [ "$(plain | sort)" = "$(printf '%s\n' "$@" | sort)" ]; }

# holds FILE TEXT: the file is exactly this text and a newline.
holds() { [ -f "$1" ] && [ "$(cat "$1"; echo .)" = "$(printf '%s\n.' "$2")" ]; }

# mode FILE OCTAL: the file has this mode.
mode() { [ "$(stat -c %a "$1")" = "$2" ]; }

# few N: the output has at most N lines.
few() { [ "$(plain | grep -c .)" -le "$1" ]; }

# quiet: the commands printed nothing.
quiet() { no test -s "$OUT"; }
