# Both nodes lose power at once, at many moments: state directories and devices of both lie on one disk whose every
# write is logged. From each chosen moment: the primary's device has all that a client had flushed; the mirror alone
# is exactly one cut; then both run again and after a cut they are equal, with all that was flushed.
# Disks: d0 logged, d1 its log, d2 rebuilt, d3 scratch.
test=site-power
. /share/tests/lib.sh
all_parts="pstate=1024 mstate=1024 pvol=16 mvol=16"

mkdir -p /m /p
logged && parts /dev/mapper/logged $all_parts || die "logged disk"
for n in p m; do mkfs.ext4 -q /dev/mapper/${n}state && mount /dev/mapper/${n}state /$n || die "file system"; done

mirror() { up mirror /m/state --listen 127.0.0.1:7702 --volume v=/dev/mapper/mvol; }
primary() {
	up primary /p/state --listen 127.0.0.1:0 --volume v=/dev/mapper/pvol --export v=unix:/tmp/nbd --mirror v=127.0.0.1:7702 --interval v=300ms
}
mirror
primary
check "first cut" cut_
mark begin
# A flush is noted in the log when it was answered. Here no cut is waited for: the mirror may lag.
check "writing with flushes" stamp write --socket /tmp/nbd --export v --record /tmp/record --seed "${SEED:-1}" \
	--depth 3 --longest 8 --pause 15ms --time 500ms --hooks "${HOOKS:-12}" --hook 'dmsetup message logged 0 mark t$STAMP_TICK'
down primary mirror
umount /p /m && unparts pvol mvol pstate mstate logged || die "logged disk is still in use"

logged_all || die "not all writes were logged: $(dmesg | tail -n 3)"
points=$(replay points --after begin --count "${POINTS:-24}" --seed "${SEED:-1}" /dev/disk/d1) || die "points: $points"
echo "moments: $(wc -l <<<"$points") of $(replay list /dev/disk/d1 | wc -l) entries"
while read -r entry tick; do
	rebuild "$entry" && parts /dev/mapper/rebuilt $all_parts || die "entry $entry: cannot rebuild"
	mount /dev/mapper/pstate /p && mount /dev/mapper/mstate /m || die "entry $entry: the file systems do not mount"
	check "entry $entry: flushed by $tick, on the disk" stamp durable --record /tmp/record --since "$tick" /dev/mapper/pvol
	mirror
	down mirror || die "entry $entry: the mirror does not stop"
	check "entry $entry: the mirror is a cut" stamp check --record /tmp/record /dev/mapper/mvol
	mirror
	primary
	check "entry $entry: a cut with both" cut_
	down primary mirror || die "entry $entry: they do not stop"
	check "entry $entry: flushed by $tick" stamp durable --record /tmp/record --since "$tick" /dev/mapper/pvol
	check "entry $entry: equal" cmp /dev/mapper/pvol /dev/mapper/mvol
	umount /p /m && unparts pvol mvol pstate mstate && forget || die "entry $entry: cannot clean up"
done <<<"$points"
finish
