// Package ship decides how a primary keeps one mirror up to date. It is pure: what happened goes in, what to
// do next comes out; no goroutine, no clock, no I/O, and no iteration over a map. The shell around it
// (engine/shipper*.go, or the simulator) moves the bytes, keeps the time and owns the page sets, of which
// the core sees only counts.
//
//	core.go     Core: the state, and Next, which says what to do
//	events.go   what happened: cuts, answers of the mirror, a person's wishes
//	records.go  what was sent and is not settled: order, chain, tries
//	attach.go   what to make of what a mirror says when it attaches
//
// docs/LIVE.md tells the conversation. A Core serves one mirror for the life of the primary's process, over
// any number of connections. It is not safe for concurrent use.
package ship
