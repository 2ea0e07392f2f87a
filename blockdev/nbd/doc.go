// Package nbd is the export: an NBD server through which virtual machines, file systems and databases
// read and write volumes. It speaks the fixed newstyle handshake and the transmission phase of the NBD
// protocol (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md), with structured replies
// and base:allocation, without TLS.
//
//	l, err := nbd.Listen("unix:/run/blkmirror/vol.sock")
//	s := nbd.NewServer(nbd.Options{}, nbd.Export{Name: "vol", Backend: volume})
//	go s.Serve(l)
//	...
//	s.Close(ctx)
//
// # A request's way
//
//	server.go     accepts a connection, within the limit
//	handshake.go  options until the client has chosen an export; option.go reads their data
//	conn.go       the workers of one connection: one of them at a time has the turn to read
//	  reader.go     bytes from the socket; payloads go straight into aligned buffers
//	  request.go    is the request allowed?
//	  handle.go     the backend is asked
//	  sender.go     the reply; whoever finds nobody sending sends for all
//
// The numbers and layouts of the protocol are in format.go, errors and their codes on the wire in
// errors.go.
//
// # What is bounded
//
// Connections by Options.MaxConnections; payload in memory, over all connections, by Options.MaxInflight;
// requests of one connection that are being handled by maxWorkers, and replies waiting to be sent by
// maxQueued. A handshake has Options.HandshakeTimeout and maxOptions. A client that neither takes its
// replies nor sends the payload that it announced keeps its buffers only until others need them.
//
// # What the process should set
//
// A worker that waits for the disk in a system call keeps the right to run Go code until the runtime takes
// it back, which is later than a fast disk answers. With as few of these rights as a small machine has
// processors, disks are not kept busy by small requests at great depth. A process that serves such disks
// should raise runtime.GOMAXPROCS to about eight, where it is less.
package nbd
