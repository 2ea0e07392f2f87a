// Package bench measures blkmirror beside other tools that copy disks: nbdcopy (through nbdkit where it
// goes over TCP) and rsync. All of them run as child processes, on the same images, in the same rounds.
//
// What every run has in common, so that ratios mean something:
//   - a target that is empty, or that differs from the source by what the scenario says;
//   - caches of all files dropped before, where the user may (else only those of the images);
//   - the time ends when the target is durable: an fsync of it is inside the time of each tool;
//   - CPU seconds are those of every process of the tool, a server's included;
//   - tools take turns within a round, and each round begins with another one.
//
// The package neither prints nor exits.
package bench
