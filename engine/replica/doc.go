// Package replica decides what a mirror does. It is pure: events in, ordered actions out; no goroutine, no
// clock, no I/O. The shell around it (engine/mirror*.go, or the simulator) moves the bytes and carries the
// actions out one after the other; where one fails, it drops the Core and makes a new one of what is durable,
// as after a crash.
//
//	core.go    Core: the state, and the events that come from the mirror itself
//	events.go  what can happen, and what can be asked for
//	attach.go  what a primary that attaches is told
//	epoch.go   staging, commit and apply of epochs
//	direct.go  bulk, its flushes, and offers
//
// docs/LIVE.md tells the conversation. A Core is not safe for concurrent use.
package replica
