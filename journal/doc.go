// Package journal is the room of what must survive a crash: the record log, a live volume's journal, what a
// one-shot sync remembers about its target, staging, and the index of block hashes. It knows no network and
// no device.
//
// # Usage
//
//	log, err := journal.Open(journal.OS, dir, journal.Options{Kind: journal.KindSync},
//		func(lsn journal.LSN, t journal.Type, body []byte) error { ... })
//	lsn, err := log.Append(t, body) // buffered: ordered, but not durable
//	err = log.Sync(lsn)             // durable; callers share one fdatasync
//
// # What is where
//
//	fs.go         the file-system seam: FS, File, and the operating system's (os.go)
//	format.go     bytes of a segment header and of a record frame
//	log.go        Log: append, group commit, rotation
//	segment.go    segment files: create, list, drop
//	recovery.go   Open's reading side: replay, torn tail or damaged middle
//	spare.go      room for segments, kept ahead of a full disk
//	volume.go     VolumeLog: what must survive on a node of a live volume (volumefacts.go: facts;
//	              volumecheckpoint.go: taking one; volumeformat.go, volumelists.go, volumefile.go,
//	              volumefileread.go: bytes of records and of a checkpoint; volumerecovery.go: what records
//	              add up to)
//	syncstate.go  what the target of a one-shot sync remembers (syncformat.go: its bytes)
//	index.go      block number to SHA-256, in badger (indexformat.go: its bytes; indexcache.go, indexdb.go:
//	              memory and database; indexcheck.go, indexdir.go: damage and removal; indextrim.go)
//	staging.go    a mirror's redo log of one epoch (stagingformat.go: its bytes; stagingwrite.go;
//	              stagingrecovery.go: opening, listing, removing; stagingwalk.go: reading it; stagingplan.go: what
//	              is to be applied)
//	inspect.go    Dump: any of these in words (staginginspect.go)
//
// # The log's format, in short
//
// A log is a folder of segments 0000000001.seg, 0000000002.seg, ... A segment is a 64-byte header and
// records; a record is a 32-byte frame header and a body, padded to 8 bytes. Every checksum is CRC32C
// and is seeded with the log's random id, the segment's number and the frame's offset, so that bytes of
// another log, another segment or another place are never taken for a record. Type 0 is no record:
// space that was never written reads as the end.
//
// Each record also says up to which record the log was durable when it was written. This is what tells
// a torn tail from a damaged middle: bytes that were never synced may be torn in any order, and a record
// found behind a hole proves the hole to be damage only if it says that what stood there was durable.
// docs/FORMATS.md draws every layout and numbers the steps of recovery.
package journal
