package engine

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Rates are what a person allows a volume's connections, each by itself, in bytes a second on the wire.
type Rates []RateEntry

// ratesOf are the limits of one mirror.
func (c *VolumeConfig) ratesOf(mirror string) Rates {
	for _, m := range c.Mirrors {
		if m.Name == mirror && len(m.Rate) > 0 {
			return m.Rate
		}
	}
	return c.Rate
}

// RateEntry is a limit for a part of the day, by the clock of this machine. From belongs to it, To does not any
// more; To before From is over midnight, and both the same is always.
type RateEntry struct {
	From, To int // minutes since midnight
	Limit    int64
}

// At is the limit at some time: the lowest where several count; 0: none.
func (r Rates) At(t time.Time) (limit int64) {
	t = t.Local()
	now := t.Hour()*60 + t.Minute()
	for _, e := range r {
		if e.holds(now) && (limit == 0 || e.Limit < limit) {
			limit = e.Limit
		}
	}
	return limit
}

func (e RateEntry) holds(now int) bool {
	if e.From < e.To {
		return e.From <= now && now < e.To
	}
	return e.From == e.To || now >= e.From || now < e.To
}

// ParseSpan reads the part of the day of a RateEntry.
func (e *RateEntry) ParseSpan(from, to string) (err error) {
	if e.From, err = minuteOf(from); err == nil {
		e.To, err = minuteOf(to)
	}
	return err
}

// minuteOf reads HH:MM; 24:00 is midnight as well.
func minuteOf(text string) (int, error) {
	if text == "24:00" {
		return 0, nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		return 0, fmt.Errorf("%q is no time of the day such as 08:00", text)
	}
	return t.Hour()*60 + t.Minute(), nil
}

// leastPacing is what a kernel is told at least: with less, a packet may take longer than a peer is waited for.
const leastPacing = 16 << 10

// CheckCongestion refuses what can be no name of a congestion control.
func CheckCongestion(name string) error {
	const most = 15 // TCP_CA_NAME_MAX, less its final zero
	if name == "" || len(name) > most || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		return errors.New("give auto, default, or a name such as bbr or cubic")
	}
	return nil
}
