# XFS on nbd.ko on the export, with files coming and going on it, while mirror and primary are killed.
# Disks: d0 the primary's device, d1 the mirror's, d2 for the state directories, d3 for copies.
test=xfs
. /share/tests/lib.sh
modprobe nbd nbds_max=2
modprobe xfs
mkdir -p /s /live /copy
mkfs.ext4 -q /dev/disk/d2 && mount /dev/disk/d2 /s || die "state disk"

mirror() { up mirror /s/m --listen 127.0.0.1:7703 --volume v=/dev/disk/d1; }
primary() {
	up primary /s/p --listen 127.0.0.1:0 --volume v=/dev/disk/d0 --export v=unix:/tmp/nbd --mirror v=127.0.0.1:7703 --interval v=500ms
}
attach() { nbd-client -unix /tmp/nbd /dev/nbd0 -N v -timeout 60 && until_ 60 test "$(blockdev --getsize64 /dev/nbd0)" -gt 0; }
detach() { nbd-client -d /dev/nbd0; until_ 60 gone; }
gone() { ! nbd-client -c /dev/nbd0; }

# Files of all sizes are made, renamed, cut, synced and removed until it is killed or the disk fails.
churn() {
	local i=$1 d
	while :; do
		d=/live/$((i % 40))
		mkdir -p $d && head -c $((i * 7919 % 300000)) /dev/urandom >$d/a$i && mv $d/a$i $d/b$i || return
		cp -r /etc/default $d/etc$i 2>/dev/null || return
		[ $((i % 5)) != 0 ] || sync -f $d/b$i || return
		[ $((i % 7)) != 0 ] || truncate -s 1000 $d/b$i || return
		[ $((i % 3)) != 0 ] || rm -rf $d/b* || return
		i=$((i + 1))
	done
}
load() {
	churn $((RANDOM)) >/tmp/churn.log 2>&1 &
	churner=$!
}
unload() {
	kill $churner 2>/dev/null
	wait $churner 2>/dev/null
}

# look NAME: the mirror, which is dead, recovers alone; a copy of its device mounts, which replays the log, and is
# clean.
look() {
	up mirror /s/m --listen 127.0.0.1:7704 --volume v=/dev/disk/d1 # where nobody looks for it
	down mirror
	check "$1: copy" dd if=/dev/disk/d1 of=/dev/disk/d3 bs=1M conv=fsync status=none
	check "$1: mounts" mount -o nouuid /dev/disk/d3 /copy
	check "$1: can be read" sh -c 'find /copy -type f -exec cat {} + >/dev/null'
	check "$1: unmounts" umount /copy
	check "$1: xfs_repair -n" xfs_repair -n /dev/disk/d3
}

mirror
primary
attach || die "nbd-client"
check "mkfs" mkfs.xfs -q /dev/nbd0
check "mount" mount /dev/nbd0 /live
load
check "cut under load" cut_

for round in $(seq "${ROUNDS:-2}"); do
	pause_ 100 500
	crash mirror
	look "round $round, mirror killed"
	mirror
	check "round $round: cut under load" cut_

	pause_ 100 500
	crash primary
	unload
	umount /live || { sleep 1; umount -l /live; }
	detach
	crash mirror
	look "round $round, both killed"
	mirror
	primary
	attach || die "nbd-client after the kill"
	check "round $round: mounts after the kill" mount /dev/nbd0 /live
	load
	check "round $round: cut under load after the kill" cut_
done

pause_ 100 300
unload
check "unmount" umount /live
check "last cut" cut_
detach
down primary mirror
check "equal" cmp /dev/disk/d0 /dev/disk/d1
check "xfs_repair -n on the mirror's device" xfs_repair -n /dev/disk/d1
finish
