// Package e2e drives the real binary as a user does: processes, files, loop devices, sockets and signals.
// It imports nothing of the product. What the binary did is judged by reading both sides with plain reads,
// and what crossed the wire by a proxy written from docs/PROTOCOL.md alone (frames_test.go).
//
// The tests take minutes and some want root, so they run only where they are asked for: scripts/test e2e,
// or BLKMIRROR_E2E=1 go test ./e2e. docs/TESTING.md lists the knobs.
package e2e
