// Package bench measures blkmirror beside other tools. All of them run as child processes, on the same
// disk, in the same rounds.
//
// Run is about copies, beside nbdcopy (through nbdkit where it goes over TCP) and rsync. What every run of
// it has in common, so that ratios mean something:
//   - a target that is empty, or that differs from the source by what the scenario says;
//   - caches of all files dropped before, where the user may (else only those of the images);
//   - the time ends when the target is durable: an fsync of it is inside the time of each tool;
//   - CPU seconds are those of every process of the tool, a server's included;
//   - tools take turns within a round, and each round begins with another one.
//
// RunLive is about live volumes, beside qemu-nbd and nbdkit: one load of fio's on each export in turn.
// Exports with O_DIRECT are compared; nbdkit, in the page cache, is only told. The disk is flushed before
// each run, images have no holes, and the first seconds, in which regions become hot, do not count.
//
// What TLS costs is measured by both, against --insecure: tcp-tls of Run, first-copy of RunLive.
//
// The package neither prints nor exits.
package bench
