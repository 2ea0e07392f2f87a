package engine

import (
	"cmp"
	"fmt"
	"time"
)

// Problems are what a person should look at, one line each: `status --check` and /healthz tell the same. maxLag 0:
// each volume's own.
func (s *Status) Problems(maxLag time.Duration) []string {
	var all []string
	for _, warning := range s.Node.Warnings {
		all = append(all, "keys: "+warning)
	}
	for i := range s.Volumes {
		v := &s.Volumes[i]
		for _, t := range v.problems(maxLag) {
			all = append(all, v.Name+": "+t)
		}
	}
	return all
}

func (v *VolumeStatus) problems(maxLag time.Duration) []string {
	var all []string
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	switch {
	case v.ReadOnly != nil:
		add("read-only%s", because(v.ReadOnly.Reason))
	case v.State != "ok":
		add("%s%s", v.State, because(v.Error))
	}
	if len(v.Rot) > 0 {
		add("rot: %d blocks of its disk are not what was written, the first is %d", v.RotBlocks, v.Rot[0])
	}
	if v.Unproven {
		add("unproven: the disk is still compared with its index")
	}
	limit := cmp.Or(maxLag.Seconds(), v.MaxLag, DefaultMaxLag.Seconds())
	for i := range v.Mirrors {
		m := &v.Mirrors[i]
		for _, t := range m.problems(limit) {
			add("mirror %s%s", m.Called(), t)
		}
	}
	if v.Role == "mirror" {
		switch p := v.Primary; {
		case p == nil:
			add("no primary has come yet")
		case p.State != "connected" && p.State != "catching-up":
			add("its primary %s is %s%s", p.Called(), p.State, because(p.Reason))
		}
	}
	return all
}

// problems of a mirror, as its primary sees it; behind its name.
func (m *MirrorStatus) problems(maxLag float64) []string {
	var all []string
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	switch {
	case m.ReadOnly != nil:
		add(" is read-only%s", because(m.ReadOnly.Reason))
	case m.State != "connected" && m.State != "catching-up":
		add(" is %s%s", m.State, because(m.Reason))
	case m.LagSeconds > maxLag:
		add(" lags by %s", FormatSeconds(m.LagSeconds))
	}
	if p := m.Probe; p != nil && !p.OK {
		add(": the next connection would fail: %s: %s", p.Class, p.Error)
	}
	if m.Holes > 0 {
		add(" has %d holes", m.Holes)
	}
	return all
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

// FormatSeconds writes a time for people.
func FormatSeconds(s float64) string {
	switch {
	case s < 1:
		return fmt.Sprintf("%.2f s", s)
	case s < 60:
		return fmt.Sprintf("%.1f s", s)
	}
	return (time.Duration(s) * time.Second).String()
}
