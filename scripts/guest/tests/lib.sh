# Helpers of the tests that run in the guest; sourced. A test calls `check NAME COMMAND...` for each thing that it
# shows, and `finish` at its end.
export PATH=/share/bin:$PATH
exec 3>&1 # die is heard wherever it is called
set -u
failures=0
checks=0
RANDOM=${SEED:-1} # the moments of kills

check() { # NAME COMMAND...
	local name=$1 said
	shift
	checks=$((checks + 1))
	if said=$("$@" 2>&1); then
		echo "PASS $name"
	else
		echo "FAIL $name: $* ($?): $(tail -c 1500 <<<"$said")"
		failures=$((failures + 1))
	fi
}

die() {
	echo "FAIL $test: $*" >&3
	keep
	exit 1
}

keep() { # what may explain a failure
	mkdir -p "/share/failed/$test"
	cp /tmp/*.log /tmp/record* "/share/failed/$test/" 2>/dev/null
}

finish() {
	[ $failures = 0 ] || keep
	echo "$test: $((checks - failures)) passed, $failures failed"
	[ $failures = 0 ]
}

# Where the processor is emulated all takes long: conditions are waited for, for minutes.
until_() { # SECONDS COMMAND...
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.05
	done
}

# Daemons. up NAME STATE FLAGS... starts one and waits for its recovery; its process is ${pid[NAME]}.
declare -A pid control
up() {
	local name=$1 state=$2
	shift 2
	control[$name]=$state/control.sock
	blkmirror serve --insecure --state "$state" "$@" >>"/tmp/$name.log" 2>&1 &
	pid[$name]=$!
	until_ 120 ready "$name" || die "$name does not come up: $(tail -n 5 "/tmp/$name.log")"
}
ready() { # NAME
	kill -0 "${pid[$1]}" && ask "$1" status
}
ask() { # NAME COMMAND...
	local name=$1
	shift
	blkmirror "$@" --control "${control[$name]}"
}
crash() { # NAME...: kill -9, and wait until it is gone
	local name
	for name; do kill -KILL "${pid[$name]}"; done
	for name; do wait "${pid[$name]}" 2>/dev/null; done
}
down() { # NAME...: a clean stop
	local name
	for name; do
		kill -TERM "${pid[$name]}"
		wait "${pid[$name]}" || return
	done
}
cut_() { ask primary cut v --wait --timeout 120s; }

pause_() { # between A and B hundredths of a second, at random
	local n=$(($1 + RANDOM % ($2 - $1)))
	sleep "$((n / 100)).$(printf %02d $((n % 100)))"
}

# Disks in parts. parts DISK NAME=MIB... makes /dev/mapper/NAME of each, one behind the other.
parts() {
	local disk=$1 at=0 part size
	shift
	for part; do
		size=$((${part#*=} * 2048))
		dmsetup create "${part%=*}" --table "0 $size linear $disk $at" || return
		at=$((at + size))
	done
	dmsetup mknodes
}
unparts() { # NAME...
	local name
	for name; do until_ 30 dmsetup remove "$name" || return; done
}

# A disk whose writes are logged: /dev/mapper/logged, over d0, its log on d1.
logged() {
	modprobe dm-log-writes
	dmsetup create logged --table "0 $(blockdev --getsz /dev/disk/d0) log-writes /dev/disk/d0 /dev/disk/d1" && dmsetup mknodes
}
mark() { dmsetup message logged 0 mark "$1"; }
logged_all() { # after the logged disk was removed: the target stops logging when it runs out of memory or room
	[ "$(replay list /dev/disk/d1 | tail -n 1 | cut -d' ' -f2-)" = 'mark dm-log-writes-end' ]
}

# The disk as it was: `rebuild ENTRY` brings d2, which only ever goes forward, to this entry of the log, and makes
# /dev/mapper/rebuilt of it. What is written there goes to d3 and is forgotten by `forget`.
rebuilt_to=0
rebuild() {
	replay apply --from $rebuilt_to --to "$1" /dev/disk/d1 /dev/disk/d2 || return
	rebuilt_to=$1
	dmsetup create rebuilt --table "0 $(blockdev --getsz /dev/disk/d2) snapshot /dev/disk/d2 /dev/disk/d3 N 16" && dmsetup mknodes
}
forget() { unparts rebuilt; }
