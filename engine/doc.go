// Package engine is the replication itself. So far: one-shot sync, which makes one volume equal to
// another, and the server that offers volumes to it.
package engine
