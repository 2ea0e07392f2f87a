// Package identity is who we are and whom we trust: the keys of a node and of its peers in a folder that is
// read again while the node runs, TLS made of a connection by them, and their rollover. docs/KEYS.md is the
// contract, docs/FORMATS.md draws the files.
//
// In the order in which things happen:
//
//	id.go         an ID and its text
//	own.go        our own keys, and their file
//	trust.go      peers, their keys, their rights; trustfile.go their file
//	files.go      the folder: lock, durable replacement
//	node.go       all of it together, kept up to date with time and with other processes
//	ca.go         certificates of an authority, in place of pinned keys
//	handshake.go  Dial and Accept; conn.go what comes of them
//	keynext.go    the announcement of a successor; rollover.go its exchange with a peer
//	info.go       what a person is told; dump.go what he is shown of the files
package identity
