package engine

import (
	"errors"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/wire/identity"
)

// A look at the node is what status, metrics and health are made of. It takes locks that are held for moments
// only; but some of them are, in the end, behind one that somebody holds while a journal becomes durable. So a
// volume has a time to answer, and is told as failed where it does not: that its disk hangs is just what a person
// wants to know then.

// statusPatience is what a volume has to tell its state: more than an fsync takes on a busy disk, less than a scraper waits.
const statusPatience = 5 * time.Second

// inquiry is who waits for a volume's state.
type inquiry struct {
	mu   sync.Mutex
	late int // goroutines that did not answer in time, and still have not
}

// soon is the volume's status, within the time given. While an answer is late nobody else waits for one: as many
// goroutines hang as asked in that time, and no more.
func (v *volume) soon(patience time.Duration) VolumeStatus {
	v.inquiry.mu.Lock()
	late := v.inquiry.late
	v.inquiry.mu.Unlock()
	if late > 0 {
		return v.silent()
	}
	answer := make(chan VolumeStatus, 1)
	waited, answered := true, false // under inquiry.mu
	go func() {
		st := v.status()
		v.inquiry.mu.Lock()
		defer v.inquiry.mu.Unlock()
		answer <- st
		if answered = true; !waited {
			v.inquiry.late--
		}
	}()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case st := <-answer:
		return st
	case <-limit.C:
	}
	v.inquiry.mu.Lock()
	defer v.inquiry.mu.Unlock()
	if answered {
		return <-answer
	}
	waited = false
	v.inquiry.late++
	return v.silent()
}

// silent is the status of a volume that does not tell one.
func (v *volume) silent() VolumeStatus {
	return VolumeStatus{Name: v.name, Device: v.path, Role: "unknown", State: "failed", Error: errHangs.Error(),
		Next: "check the disk of the state directory, and the volume's own (dmesg, smartctl): it goes on as soon as they answer", Sessions: []SessionStatus{}}
}

var errHangs = errors.New("does not answer: a disk hangs")

// look is the status of the node and of these volumes.
func (s *server) look(volumes []string) Status {
	st := Status{Node: s.nodeStatus(), Listen: s.listener.Addr().String(), Volumes: make([]VolumeStatus, len(volumes))}
	if s.web != nil {
		st.HTTP = s.web.listener.Addr().String()
	}
	if s.Identity != nil {
		st.Node.Key, st.Node.Warnings = s.Identity.ID().String(), s.gate.warnings()
	}
	var answers sync.WaitGroup // all at once: several may hang
	for i, name := range volumes {
		answers.Go(func() { st.Volumes[i] = s.volumes[name].soon(statusPatience) })
	}
	answers.Wait()
	for i := range st.Volumes {
		s.gate.describe(&st.Volumes[i])
	}
	return st
}

// observation is a look at everything, and what only metrics tell.
type observation struct {
	Status
	at          time.Time
	disconnects map[seat]classCounts
	ends        []identity.End
}

func (s *server) observe() observation {
	o := observation{Status: s.look(s.names), at: s.now(), disconnects: s.disconnects.countBySeat()}
	if s.Identity != nil {
		o.ends = s.Identity.Ends()
	}
	return o
}

func (s *server) now() time.Time {
	if s.clock != nil {
		return s.clock()
	}
	return time.Now()
}
