// Package wire is what passes between two nodes: frames, their codec, the connection and its liveness.
// It knows no device and no journal.
//
// A connection is dialled with [Dial] or accepted from [Listen] and wrapped with [NewConn]. One goroutine
// calls [Conn.Next] all the time, any number call [Conn.Send]:
//
//	conn := wire.NewConn(nc, wire.ConnOptions{})
//	defer conn.Close(nil)
//	err := conn.Send(&wire.Hello{…})
//	m, err := conn.Next()
//	conn.Established()
//
// The reader must never wait for anything that needs the peer: flow control is [SendWindow]'s and
// [Meter]'s business, and a node that does not read cannot prove that it lives.
//
// # Format
//
// A frame is a header of fixed size ([HeaderSize], drawn in frame.go), the meta (the message's own
// fields, drawn in encode.go) and, in Data alone, a payload. Three checksums guard three things, each
// before it is believed: the header's CRC its lengths, the meta's CRC what the payload is and where it
// belongs, and the SHA-256 in the meta the payload, which only the engine can check, after unpacking.
//
// The files follow the data: message.go, live_messages.go and codes.go (what is said), frame.go, encode.go,
// encode_live.go, decode.go, decode_live.go, check.go and check_live.go (bytes), codec.go (payloads and checksums), window.go (flow control), conn.go, send.go, receive.go and
// live.go (the connection), dial.go (sockets), errors.go (what goes wrong).
package wire
