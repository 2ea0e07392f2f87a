# The mirror's disk loses power at many moments. State directory and device lie on one disk whose every write is
# logged. From each chosen moment the mirror recovers alone, without its primary: its device is exactly one cut, not
# older than what it had confirmed, and never an older one than at an earlier moment.
# Disks: d0 logged, d1 its log, d2 rebuilt, d3 scratch, d4 the primary's.
test=mirror-power
. /share/tests/lib.sh
mirror_parts="mstate=1024 mvol=16"

mkdir -p /m /p
mkfs.ext4 -q /dev/disk/d4 && mount /dev/disk/d4 /p && truncate -s 16M /p/image || die "primary's disk"
logged && parts /dev/mapper/logged $mirror_parts && mkfs.ext4 -q /dev/mapper/mstate && mount /dev/mapper/mstate /m || die "logged disk"

mirror() { up mirror /m/state --listen 127.0.0.1:7701 --volume v=/dev/mapper/mvol; }
primary() {
	up primary /p/state --listen 127.0.0.1:0 --volume v=/p/image --export v=unix:/tmp/nbd --mirror v=127.0.0.1:7701 --interval v=300ms
}
mirror
primary
check "first cut" cut_
mark begin

# While stamped pages are written, every now and then: a cut is waited for, and noted in the log.
export control_sock=${control[primary]}
check "writing with cuts" stamp write --socket /tmp/nbd --export v --record /tmp/record --seed "${SEED:-1}" \
	--depth 3 --longest 8 --pause 15ms --time 700ms --hooks "${HOOKS:-10}" \
	--hook 'blkmirror cut v --wait --timeout 120s --control $control_sock >/dev/null && dmsetup message logged 0 mark t$STAMP_TICK'
down primary mirror
umount /m && unparts mvol mstate logged || die "logged disk is still in use"

logged_all || die "not all writes were logged: $(dmesg | tail -n 3)"
points=$(replay points --after begin --count "${POINTS:-30}" --seed "${SEED:-1}" /dev/disk/d1) || die "points: $points"
echo "moments: $(wc -l <<<"$points") of $(replay list /dev/disk/d1 | wc -l) entries"

# recover ENTRY TICK: the mirror recovers from the disk at this moment.
newest=0 # the earliest instant that the last cut seen may have been at
recover() {
	local said
	rebuild "$1" && parts /dev/mapper/rebuilt $mirror_parts && mount /dev/mapper/mstate /m || return
	mirror && down mirror || return
	said=$(stamp check --record /tmp/record --since "$2" /dev/mapper/mvol 2>&1) || { echo "$said"; return 1; }
	echo "$said"
	said=${said#cut between }
	newest=${said%% *}
}
leave() { umount /m && unparts mvol mstate && forget; }
n=0
while read -r entry tick; do
	[ "$tick" -ge "$newest" ] || tick=$newest
	# not in a subshell: recover remembers
	checks=$((checks + 1))
	if recover "$entry" "$tick" >/tmp/said.log 2>&1; then
		echo "PASS entry $entry: $(tail -n 1 /tmp/said.log)"
	else
		echo "FAIL entry $entry, not older than $tick: $(tail -c 1000 /tmp/said.log); mirror: $(tail -n 3 /tmp/mirror.log)"
		failures=$((failures + 1))
	fi
	# Every tenth time the primary, which is long past that moment, meets it.
	if [ $((n++ % 10)) = 5 ]; then
		mirror
		primary
		check "entry $entry: a cut with the primary" cut_
		down primary mirror
		check "entry $entry: equal" cmp /p/image /dev/mapper/mvol
	fi
	leave || die "entry $entry: cannot clean up"
done <<<"$points"
finish
