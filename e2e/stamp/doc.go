// Package stamp decides exactly whether an image shows a disk as it was at one instant.
//
// A Writer writes stamped pages through an NBD export, many requests at a time, and keeps a History: which
// request wrote which pages, and between which two ticks of a logical clock it must have entered the server.
// Check then holds an image (a mirror's device) against the history and finds the instants at which a cut
// between writes would leave exactly this image. There are three rules, and together they are complete:
//
//   - every page shows, whole, something that was written to it (or zeroes, where it began);
//   - an instant T exists such that every write whose request was issued after T is missing and every write
//     that was acknowledged by T is there; those under way at T may be either;
//   - a request that covers several pages is there on all of them or on none.
//
// A request is recorded as issued before its first byte is sent and as acknowledged after its reply was
// read, so the true entry always lies between the two and a right image is never called wrong.
//
// Use:
//
//	h := stamp.NewHistory(pages, seed)
//	w := stamp.NewWriter(h, stamp.Load{Network: "unix", Address: sock, Export: "v"})
//	w.Start()
//	...                       // kill and restart what serves the export, as often as you like
//	w.Stop()
//	cut, err := h.CheckFile("mirror.img")
//
// A history that is logged to a file (LogTo) can be gone on with, and be judged by, another process; a Verdict
// says for people what is wrong with an image, and which writes are there.
//
// The package knows nothing of the product but the NBD protocol.
package stamp
