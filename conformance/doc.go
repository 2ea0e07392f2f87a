// Package conformance judges tools that keep a second copy of a disk, by scenarios in plain files.
//
// A Scenario is a list of steps (start, write, kill, cut the link …) and of outcomes that are expected. A Suite
// runs it against real processes: the tool is reached through an adapter, an executable that knows how the tool
// is started and asked; the Suite owns what the tool must not, which is the images, the writer, the link between
// the nodes (a TCP proxy) and kill -9. Whether an image is right is decided by package stamp alone, from what
// was written and answered.
//
// docs/CONFORMANCE.md has the words of a scenario and the contract of an adapter. This package knows nothing of
// blkmirror.
//
//	parse.go     a file becomes a Scenario      words.go   the steps there are, and what takes each of them
//	suite.go     one scenario from end to end   steps.go, faults.go, expect.go   what the steps do
//	node.go      one process of the tool        adapter.go   questions to the adapter
//	link.go      the proxy
package conformance
