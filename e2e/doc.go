// Package e2e drives the real binary as a user does: processes, files, loop devices, sockets and signals.
// It imports nothing of the product. What the binary did is judged by reading both sides with plain reads,
// and what crossed the wire by a proxy written from docs/PROTOCOL.md alone (frames_test.go).
//
// A test has a folder of its own, addresses where nobody else listens (ownAddress), and its mounts, loop devices and
// namespaces to itself. So it begins with t.Parallel(), since most of them wait most of the time. Those without it
// measure what others would disturb (memory, throughput, what doctor finds), move gigabytes, or look at a folder that
// all share: they run first, one after the other.
//
// The tests take minutes and some want root, so they run only where they are asked for: scripts/test e2e,
// or BLKMIRROR_E2E=1 go test ./e2e. docs/TESTING.md lists the knobs.
package e2e
